"""End to end: a whole network as in scripts/localnet.py, disturbed while it works, then checked from outside.

Real processes, real ports, real text. One network serves every check, because starting one takes minutes:

* once the model has taken a step: the last miner comes, with an empty directory;
* epoch 1, some updates committed: the parameter server and a miner are killed (-9) and started again;
* epoch 2: the validator that everybody is connected to is killed and started again;
* the last epoch: the parameter server is killed as soon as its signed commitment is stored, before or while it is sent;
* afterwards: receipts, the audit from the first state, payout by hand, wrong flags and ports in use, polkadot.js.
"""

import json
import pathlib
import socket
import sqlite3
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import localnet  # noqa: E402
from localnet import BIN, Failure, http_json, note, output, until  # noqa: E402

PARAMETER_SERVER_SECONDS_MAX = 60
CHAIN_SECONDS_MAX = 90


def equal(what, found, expected):
    if found != expected:
        raise Failure(f"{what} is {found}, expected {expected}")


def fails(code, words, *command):
    """The command ends with this exit code and says this, in one line that starts with `error: ` or is clap's."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=60)
    if done.returncode != code or words not in done.stderr:
        raise Failure(f"{' '.join(map(str, command))}: code {done.returncode}, expected {code}; it must say '{words}', it said:\n{done.stderr}")


class Disturbed(localnet.Localnet):
    """A network in which things break at known moments."""

    def __init__(self, options):
        super().__init__(options)
        self.server_killed = self.chain_killed = False
        self.joined_at = None
        self.held = set()
        self.signed = None

    def start(self):
        super().start()
        threading.Thread(target=self.kill_server_when_it_has_signed, daemon=True).start()

    def start_miners(self):
        for i in range(self.options.miners - 1):
            self.start_miner(i)
        note(f"{self.options.miners - 1} miners run, one more comes later; an epoch is {self.epoch_blocks} blocks")

    def attestations(self):
        """Signed commitments of the last epoch, as stored."""
        database = sqlite3.connect(f"file:{self.dir}/ps/state.sqlite?mode=ro", uri=True, timeout=5)
        try:
            query = "SELECT round, commitment, signature FROM attestations WHERE epoch = ?"
            return database.execute(query, (self.options.epochs - 1,)).fetchall()
        finally:
            database.close()

    def kill_server_when_it_has_signed(self):
        while True:
            try:
                stored = self.attestations()
            except sqlite3.OperationalError:
                stored = []  # being made, or locked for a moment
            if stored:
                self.processes.kill("ps")
                self.signed = stored
                self.processes.start_again("ps")
                note("kill -9: parameter server, just after it had stored a signed commitment")
                return
            time.sleep(0.002)

    def tick(self, status):
        open_round = status["phase"] == "open"
        if self.joined_at is None and status["model_step"] >= 1:
            self.joined_at = status["model_step"]
            self.start_miner(self.options.miners - 1)
            note(f"a newcomer starts: the model has taken {self.joined_at} step(s) without it")
        if not self.server_killed and open_round and status["epoch"] >= 1 and status["submissions"] >= 1:
            self.server_killed = True
            self.kill_server_and_miner()
        if not self.chain_killed and self.server_killed and open_round and status["epoch"] >= 2:
            self.chain_killed = True
            self.kill_validator()

    def receipts(self):
        """What the miners have in hand, by submission."""
        found = {}
        for path in (self.dir / "miners").glob("*/receipts/*.json"):
            record = json.loads(path.read_text())
            if record["receipt"]:
                found[record["id"]] = record["receipt"]
        return found

    def kill_server_and_miner(self):
        note("kill -9: parameter server and miner 0")
        held = until("a receipt in a miner's hand", 20, self.processes, lambda: self.receipts() or None)
        self.processes.kill("ps")
        self.processes.kill("miner-0")
        self.processes.start_again("ps")
        self.processes.start_again("miner-0")
        until("the parameter server's return", PARAMETER_SERVER_SECONDS_MAX, self.processes, lambda: http_json(self.ps_url + "/v1/status"))
        for submission, receipt in held.items():
            equal(f"the receipt of {submission} after the restart", http_json(f"{self.ps_url}/v1/submissions/{submission}")["receipt"], receipt)
        self.held = set(held)
        note(f"the server is back and knows all {len(held)} receipts that miners hold")

    def kill_validator(self):
        note("kill -9: the validator that parameter server and miners are connected to")
        self.processes.kill("validator-alice")
        until(
            "the parameter server's notice that the chain is away", 60, self.processes,
            lambda: http_json(self.ps_url + "/v1/status")["notice"],
        )  # fmt: skip
        self.processes.start_again("validator-alice")
        until("the validator's return", CHAIN_SECONDS_MAX, self.processes, lambda: self.chain.call("system_name"))
        until(
            "the parameter server's return to the chain", 60, self.processes,
            lambda: http_json(self.ps_url + "/v1/status")["notice"] is None or None,
        )  # fmt: skip
        note("the validator is back, the parameter server follows it again")

    # --- afterwards -----------------------------------------------------------------------------------------------

    def check(self):
        if not (self.server_killed and self.chain_killed and self.signed and self.joined_at):
            raise Failure("the network was not disturbed: the test did not test what it is for")
        # Never a second signature: what was stored before the kill is what is there now, and what the chain accepted.
        equal("the signed commitment after the kill", self.attestations(), self.signed)
        note("signature: one commitment was signed for the epoch in which the server was killed, and it was accepted")
        self.check_summary()
        self.check_miners()
        self.check_audit()
        self.check_weights()
        self.check_auditors_program()
        self.check_closed_pipes()
        self.check_mistakes()
        self.check_polkadot_js()

    def check_summary(self):
        summary = json.loads((self.dir / "summary.json").read_text())
        epochs, miners = summary["epochs"], summary["miners"]
        equal("the number of miners", len(miners), self.options.miners)
        balances = sum(int(m["balance_planck"]) for m in miners)
        equal("the sum of the balances", balances, sum(int(e["minted_planck"]) for e in epochs))
        for e in epochs:
            if not 0 < int(e["minted_planck"]) <= int(e["budget_planck"]):
                raise Failure(f"epoch {e['epoch']} minted {e['minted_planck']} of {e['budget_planck']} planck")
        if any(int(m["balance_planck"]) == 0 for m in miners):
            raise Failure(f"a miner has earned nothing in {len(epochs)} epochs: {miners}")
        note("summary: every miner was paid, the balances are what was minted")

    def check_miners(self):
        for i in range(self.options.miners):
            data = self.dir / "miners" / str(i)
            lines = [json.loads(l) for l in output(BIN / "alice-miner", "receipts", "--verify", "--json", "--data-dir", data).splitlines()]
            for l in lines:
                # A receipt is worth its bytes: none of them may have been lost with the killed server.
                if l["id"] in self.held and (not l["verdict"] or l["verdict"]["body"]["outcome"] == "voided"):
                    raise Failure(f"miner {i}: submission {l['id']} had a receipt when the server was killed, and came to nothing: {l}")
            tasks = [l["task_id"] for l in lines]
            equal(f"miner {i}: tasks answered twice", len(tasks) - len(set(tasks)), 0)
            accepted = [l["epoch"] for l in lines if l["verdict"] and l["verdict"]["body"]["outcome"] == "accepted"]
            if not accepted:
                raise Failure(f"miner {i} has no accepted submission")
            # It is paid already: pushing the page again says so and does no harm.
            text = output(BIN / "alice-miner", "payout", "--epoch", accepted[0], "--chain", self.ws_url, "--data-dir", data)
            if "is on the chain" not in text:
                raise Failure(f"miner {i}: pushing its page said: {text}")
        note("miners: every receipt and verdict verifies, no task was answered twice, pages can be pushed by anybody")

    def check_audit(self):
        text = output(BIN / "alice-ps", "audit", "--ps", self.ps_url, "--chain", self.ws_url, "--json")
        audited = {a["epoch"]: a for a in map(json.loads, text.splitlines())}
        for e in json.loads((self.dir / "summary.json").read_text())["epochs"]:
            found = audited[e["epoch"]]
            equal(f"epoch {e['epoch']}: the model root of a second process", found["model_root"], e["model_root"])
            equal(f"epoch {e['epoch']}: what the audit says was paid", found["paid_planck"], e["minted_planck"])
        note(f"audit: a second process recomputed {len(audited)} epochs from block 0 and came to the same roots and pay")

    def check_weights(self):
        """A folder made from what is public holds against the chain, and one with a flipped bit does not."""
        ps, folder, run = BIN / "alice-ps", self.dir / "weights", self.spec_file
        done = json.loads(
            output(ps, "export", "--ps", self.ps_url, "--chain", self.ws_url, "--type", "f32", "--out", folder, "--json")
        )
        verify = [ps, "verify", "--model", folder, "--run", run, "--chain", self.ws_url, "--json"]
        found = json.loads(output(*verify))
        equal("what the weights were compared with", (found["root_from"], found["numbers"]), ("chain", "root"))
        equal("the model root of the exported weights", found["model_root"], done["model_root"])
        last = json.loads((self.dir / "summary.json").read_text())["epochs"][-1]
        if done["epoch"] == last["epoch"]:
            equal("the model root of the last epoch's weights", done["model_root"], last["model_root"])
        # The same without any node: from the proof in the folder and the chain's specification.
        offline = [ps, "verify", "--model", folder, "--run", run, "--chain-spec", self.dir / "chain.json", "--json"]
        found = json.loads(output(*offline))
        equal("what the weights were compared with, offline", (found["root_from"], found["numbers"]), ("proof", "root"))
        stranger = self.dir / "stranger.json"
        stranger.write_text(output(BIN / "alice-node", "localnet-spec", "--validators", 3, "--ps", "0x" + "11" * 32))
        fails(1, "chain", *offline[:-2], stranger)
        shard = next(folder.glob("*.safetensors"))
        with shard.open("r+b") as file:
            file.seek(-1, 2)
            byte = file.read(1)[0]
            file.seek(-1, 2)
            file.write(bytes([byte ^ 1]))
        fails(1, shard.name, *verify)
        note(f"weights: the folder of epoch {done['epoch']} is the model that the chain has signed; with one bit flipped it is refused")

    def check_auditors_program(self):
        """`alice`, which is built without libtorch, comes to the same results; so do the examples of the libraries."""
        alice, address = BIN / "alice", self.miners[0]["address"]
        account = self.miners[0]["account"]
        text = output(alice, "audit", "--ps", self.ps_url, "--chain", self.ws_url, "--json")
        equal("what `alice audit` prints", text, output(BIN / "alice-ps", "audit", "--ps", self.ps_url, "--chain", self.ws_url, "--json"))
        held = localnet.alice(self.chain.balance(account))
        for program in ([alice, "balance"], [BIN / "examples" / "balance"]):
            shown = output(*program, "--chain", self.ws_url, address)
            if held not in shown:
                raise Failure(f"{' '.join(map(str, program))} does not show {held} ALICE for {address}: {shown}")
        folder = self.dir / "weights-by-alice"
        output(alice, "export", "--ps", self.ps_url, "--chain", self.ws_url, "--type", "f32", "--out", folder)
        output(alice, "verify", "--model", folder, "--run", self.spec_file, "--chain-spec", self.dir / "chain.json")
        output(BIN / "examples" / "verify_folder", folder, self.spec_file)
        note("alice: the auditor's program and the libraries' examples come to the same numbers")

    def check_closed_pipes(self):
        """A reader that has seen enough closes the pipe: every command ends quietly."""
        data = self.dir / "miners" / "0"
        for command in (
            [BIN / "alice-node", "verify-genesis", "--chain", self.dir / "chain.json"],
            [BIN / "alice-miner", "receipts", "--json", "--data-dir", data],
            [BIN / "alice-miner", "plan", "--run", "dev"],
            [BIN / "alice-miner", "devices"],
            [BIN / "alice-ps", "spec", "check", self.spec_file],
            [BIN / "alice-ps", "audit", "--ps", self.ps_url, "--json"],
        ):
            child = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            child.stdout.close()
            said = child.stderr.read()
            if child.wait(60) != 0 or "panicked" in said or "Broken pipe" in said:
                raise Failure(f"{' '.join(map(str, command))} into a closed pipe: code {child.returncode}, {said}")
        note("closed pipes: commands end quietly when nobody reads on")

    def check_mistakes(self):
        config, ps, miner = self.dir / "ps" / "ps.toml", BIN / "alice-ps", BIN / "alice-miner"
        address = self.miners[0]["address"]
        elsewhere = self.dir / "elsewhere"
        fails(2, "another alice-ps uses", ps, "run", "--config", config)
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            output(ps, "init", "--config", config, "--data-dir", elsewhere / "ps")
            fails(1, "cannot listen on", ps, "run", "--config", config, "--data-dir", elsewhere / "ps", "--listen", f"127.0.0.1:{port}")
            fails(
                1, f"port {port} is in use", BIN / "alice-node", "--dev", "--base-path", elsewhere / "node",
                "--rpc-port", port, "--port", 0, "--no-mdns", "--no-prometheus", "--no-telemetry",
            )  # fmt: skip
        fails(1, "corpus.json", ps, "init", "--config", config, "--corpus-dir", elsewhere / "no-corpus", "--data-dir", elsewhere / "ps2")
        fails(4, "ws://127.0.0.1:1", ps, "init", "--config", config, "--chain-url", "ws://127.0.0.1:1", "--data-dir", elsewhere / "ps3")
        fails(2, "address", miner, "--ps", self.ps_url, "--payout", address[:-1] + ("1" if address[-1] != "1" else "2"), "--data-dir", elsewhere / "m")
        fails(2, "prefix 42", miner, "--ps", self.ps_url, "--payout", "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "--data-dir", elsewhere / "m")
        fails(2, "http://host:port", miner, "--ps", "nonsense", "--payout", address, "--data-dir", elsewhere / "m")
        fails(1, "another miner uses", miner, "--device", "cpu", "--ps", self.ps_url, "--payout", address, "--data-dir", self.dir / "miners" / "0")
        note("mistakes: each is refused with its exit code and a sentence that says what to do")

    def check_polkadot_js(self):
        seed = "0x" + (self.dir / "keys" / "payout-0.seed").read_text().strip().removeprefix("0x")
        command = [
            "node", ROOT / "tests/polkadot-js/check.mjs", self.ws_url, self.dir / "summary.json",
            "--seed-from", seed, "--to", self.miners[1]["address"],
        ]  # fmt: skip
        if subprocess.run([str(c) for c in command]).returncode != 0:
            raise Failure("the polkadot.js check failed, see above")


if __name__ == "__main__":
    arguments = localnet.parser()
    arguments.prog = "tests/e2e.py"
    # Tasks of fragments go through everything that whole ones do.
    arguments.set_defaults(run="dev-fragments")
    options = arguments.parse_args()
    if options.miners < 2:
        arguments.error("--miners must be at least 2: one of them comes later")
    net = Disturbed(options)
    sys.exit(localnet.run(net, net.check))
