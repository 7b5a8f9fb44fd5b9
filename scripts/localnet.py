"""Runs a whole Alice network on loopback and checks what comes out of it.

Started by localnet.sh, which builds first. Standard library only. Everything the summary says about coins is read
from the chain's storage over JSON-RPC, not from the programs that were paid.
"""

import argparse
import http.client
import json
import math
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error

from chain_storage import LOOPBACK, UNIT, Chain, Refused, budget, storage_key, twox128, xxh64  # noqa: F401

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("ALICE_CACHE", pathlib.Path.home() / ".cache/alice"))
BIN = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug"
# Says that a directory is this script's own, so that it may be emptied.
MARKER = ".alice-localnet"
# What a run's directory holds besides summary.json.
PARTS = ("logs", "chain", "corpus", "ps", "miners", "keys")
# Blocks are due every 2 s; on a busy machine slots are missed.
SECONDS_PER_BLOCK_MAX = 6
DEVICE = re.compile(r"auto|cpu|metal|cuda(:\d+)?")
VALIDATOR_NAMES = ["alice", "bob", "charlie", "dave", "eve", "ferdie"]


class Failure(Exception):
    """The network did not do what it should; the message says what."""


# Errors of a request to a program that is busy, starting or gone.
NOT_NOW = (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException, json.JSONDecodeError)


class OutputClosed(Exception):
    """Whoever read this script's output has closed the pipe."""


def say(text=""):
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Python flushes standard output once more at exit; a file that takes everything keeps that quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputClosed from None


def note(text):
    say(f"{time.strftime('%H:%M:%S')} {text}")


# --- processes --------------------------------------------------------------------------------------------------


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


class Processes:
    """What this run started; stopped by pid, newest first."""

    def __init__(self, logs):
        self.logs, self.running, self.commands = logs, {}, {}

    def start(self, name, *command):
        """Starts a program; its output goes to NAME.log and its pid to NAME.pid."""
        self.commands[name] = [str(c) for c in command]
        with open(self.logs / f"{name}.log", "ab") as log:
            child = subprocess.Popen(
                self.commands[name],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C goes to this script, which stops them in order
            )
        self.running[name] = child
        (self.logs / f"{name}.pid").write_text(str(child.pid))

    def kill(self, name):
        """kill -9."""
        child = self.running.pop(name)
        child.kill()
        child.wait()

    def start_again(self, name):
        self.start(name, *self.commands[name])

    def check(self):
        for name, child in list(self.running.items()):
            if child.poll() is not None:
                raise Failure(f"{name} ended with code {child.returncode}; its log ends with:\n{self.tail(name)}")

    def tail(self, name, lines=15):
        text = (self.logs / f"{name}.log").read_text(errors="replace").splitlines()
        return "\n".join("    " + line for line in text[-lines:])

    def stop(self):
        """Asks all to stop, newest first, and kills what has not within 10 s. Nothing interrupts it."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        children = list(reversed(self.running.values()))
        for child in children:
            if child.poll() is None:
                child.terminate()
        end = time.monotonic() + 10
        for child in children:
            try:
                child.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.running = {}


def output(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"{' '.join(map(str, command))} failed with code {done.returncode}:\n{done.stderr.strip()}")
    return done.stdout


def http_json(url):
    with LOOPBACK.open(url, timeout=10) as answer:
        return json.load(answer)


def until(what, deadline_seconds, processes, probe):
    """Polls `probe` until it returns something; a process that ends meanwhile is the failure that is reported."""
    end = time.monotonic() + deadline_seconds
    while time.monotonic() < end:
        processes.check()
        try:
            found = probe()
            if found is not None:
                return found
        except NOT_NOW:
            pass
        time.sleep(0.5)
    raise Failure(f"{what} did not happen within {deadline_seconds} s; logs are in {processes.logs}")


# --- the run ----------------------------------------------------------------------------------------------------


def alice(planck):
    return f"{planck // UNIT}.{planck % UNIT:012d}"[:-6]


def toml_string(value):
    """A TOML basic string. JSON's escapes are a subset of TOML's, so a quotation mark in a path is no syntax error."""
    return json.dumps(str(value), ensure_ascii=False)


def new_key(path):
    """Makes a key with alice-ps and returns (public key bytes, address)."""
    made = json.loads(output(BIN / "alice-ps", "key", "generate", "--out", path, "--json"))
    return bytes.fromhex(made["public"].removeprefix("0x")), made["address"]


class Localnet:
    def __init__(self, options):
        self.options = options
        self.dir = pathlib.Path(options.dir).resolve()
        self.spec_file = ROOT / "chain-spec" / "runs" / f"{options.run}.toml"
        self.processes = None
        self.miners = []

    def check_options(self):
        if not self.spec_file.exists():
            known = ", ".join(sorted(p.stem for p in self.spec_file.parent.glob("*.toml")))
            raise Failure(f"there is no run '{self.options.run}'; known runs: {known}")
        if not 1 <= self.options.validators <= len(VALIDATOR_NAMES):
            raise Failure(f"--validators must be between 1 and {len(VALIDATOR_NAMES)}")
        if not 1 <= self.options.miners <= 64 or self.options.epochs < 1:
            raise Failure("--miners must be between 1 and 64, --epochs at least 1")
        if not DEVICE.fullmatch(self.options.device):
            raise Failure(f"--device is '{self.options.device}'; it may be cpu, cuda, cuda:N, metal or auto")
        self.check_directory()

    def check_directory(self):
        """Finds out before the build whether the directory can be used; changes nothing."""
        existing = next(p for p in (self.dir, *self.dir.parents) if p.exists())
        if not existing.is_dir():
            raise Failure(f"{existing} is a file, so {self.dir} cannot be a directory; choose another --dir")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise Failure(f"{existing} belongs to another user and cannot be written; choose another --dir")
        if existing == self.dir and not (self.dir / MARKER).exists() and any(self.dir.iterdir()):
            raise Failure(f"{self.dir} is not empty and not a localnet's; choose another --dir, nothing was changed")

    def prepare(self):
        self.check_options()
        for program in ("alice-node", "alice-ps", "alice-miner"):
            if not (BIN / program).exists():
                raise Failure(f"{BIN / program} is not built; run scripts/localnet.sh, which builds first")
        if not (CACHE / "corpus-sotu").is_dir():
            raise Failure(f"the text is not in {CACHE / 'corpus-sotu'}; run scripts/setup.sh, which downloads it")
        logs, marker = self.dir / "logs", self.dir / MARKER
        if marker.exists():
            self.refuse_if_running(logs)
            # A new run is a new chain: nothing of an earlier one may remain. Only what this script made is removed.
            for part in PARTS:
                shutil.rmtree(self.dir / part, ignore_errors=True)
            (self.dir / "summary.json").unlink(missing_ok=True)
        for part in PARTS:
            (self.dir / part).mkdir(parents=True, exist_ok=True)
        marker.touch()
        self.processes = Processes(logs)

    @staticmethod
    def refuse_if_running(logs):
        for pid_file in logs.glob("*.pid"):
            pid = pid_file.read_text().strip()
            # `ps` is everywhere, /proc is not.
            command = subprocess.run(["ps", "-o", "command=", "-p", pid], capture_output=True, text=True).stdout
            if "alice-" in command:
                raise Failure(f"a localnet is still running in this directory ({pid_file.stem}, pid {pid}); stop it or use another --dir")

    def start(self):
        o, d = self.options, self.dir
        rpc, p2p, self.ps_port, *more = free_ports(3 + 2 * (o.validators - 1))
        note("preparing the text")
        corpus = d / "corpus"
        output(BIN / "alice-ps", "corpus", "build", "--text", CACHE / "corpus-sotu", "--out", corpus)
        priced = json.loads(output(BIN / "alice-ps", "spec", "check", self.spec_file, "--json"))
        self.parameters = priced["parameters"]
        ps_public, _ = new_key(d / "keys" / "ps.seed")
        spec = output(
            BIN / "alice-node", "localnet-spec", "--validators", o.validators, "--ps", "0x" + ps_public.hex(),
            "--run-hash", "0x" + priced["run_hash"].removeprefix("0x"), "--epoch-blocks", priced["epoch_blocks"],
        )  # fmt: skip
        (d / "chain.json").write_text(spec)
        self.started = time.monotonic()
        note(f"starting {o.validators} validator(s)")
        bootnode = None
        self.chain, self.ws_url = Chain(rpc), f"ws://127.0.0.1:{rpc}"
        for i in range(o.validators):
            name = VALIDATOR_NAMES[i]
            ports = (rpc, p2p) if i == 0 else (more[2 * i - 2], more[2 * i - 1])
            command = [
                BIN / "alice-node", "--chain", d / "chain.json", f"--{name}", "--validator",
                "--base-path", d / "chain" / name, "--rpc-port", ports[0],
                "--listen-addr", f"/ip4/127.0.0.1/tcp/{ports[1]}", "--no-mdns", "--no-prometheus", "--no-telemetry",
                "--state-pruning", "archive",  # block 0 and every settled epoch can be looked at for as long as it runs
            ]  # fmt: skip
            if bootnode:
                command += ["--bootnodes", bootnode]
            self.processes.start(f"validator-{name}", *command)
            if i == 0:
                until("the first validator's RPC", 90, self.processes, lambda: self.chain.call("system_name"))
                peer = self.chain.call("system_localPeerId")
                bootnode = f"/ip4/127.0.0.1/tcp/{p2p}/p2p/{peer}"
        self.genesis = self.chain.call("chain_getBlockHash", 0)
        until("the first finalised block", 120, self.processes, lambda: self.chain.finalized() or None)
        note(f"chain runs: genesis {self.genesis}, {self.ws_url}")

        config = d / "ps" / "ps.toml"
        settings = {
            "listen": f"127.0.0.1:{self.ps_port}",
            "data_dir": d / "ps",
            "chain_url": self.ws_url,
            "run_spec": self.spec_file,
            "corpus_dir": corpus,
            "key_file": d / "keys" / "ps.seed",
            "device": o.device,
        }
        config.write_text("".join(f"{key} = {toml_string(value)}\n" for key, value in settings.items()))
        output(BIN / "alice-ps", "init", "--config", config)
        self.processes.start("ps", BIN / "alice-ps", "run", "--config", config)
        self.ps_url = f"http://127.0.0.1:{self.ps_port}"
        until("the parameter server's API", 60, self.processes, lambda: http_json(self.ps_url + "/v1/status"))
        note(f"parameter server runs: {self.ps_url}/v1/status")
        self.epoch_blocks = priced["epoch_blocks"]
        for i in range(o.miners):
            public, address = new_key(d / "keys" / f"payout-{i}.seed")
            self.miners.append({"account": public, "address": address})
        self.start_miners()

    def start_miners(self):
        """All of them; the end-to-end test lets one come later."""
        for i in range(self.options.miners):
            self.start_miner(i)
        note(f"{self.options.miners} miners run; an epoch is {self.epoch_blocks} blocks")

    def start_miner(self, i):
        self.processes.start(
            f"miner-{i}", BIN / "alice-miner", "run", "--device", self.options.device, "--threads", 1, "--ps", self.ps_url,
            "--payout", self.miners[i]["address"], "--data-dir", self.dir / "miners" / str(i), "--chain", self.ws_url,
        )  # fmt: skip

    def watch(self):
        """Waits until the wanted number of epochs is settled; returns their summaries, oldest first."""
        shown_block, shown, settled, first_coin = 0, set(), {}, None
        limit = time.monotonic() + (self.options.epochs + 2) * self.epoch_blocks * SECONDS_PER_BLOCK_MAX + 120
        while True:
            self.processes.check()
            if time.monotonic() > limit:
                raise Failure(f"only {len(settled)} of {self.options.epochs} epochs were settled in time; logs are in {self.dir / 'logs'}")
            try:
                best, final = self.chain.best(), self.chain.finalized()
                epochs = http_json(self.ps_url + "/v1/epochs")
                status = http_json(self.ps_url + "/v1/status")
                issued = self.chain.issuance()
                minted = {e["epoch"]: self.chain.issued_in(e["epoch"]) for e in epochs}
            except NOT_NOW:
                time.sleep(1)
                continue
            if best >= shown_block + 5:
                shown_block = best
                loss = status["held_out_loss"]
                note(
                    f"block {best:>4} (finalised {final:>4})  epoch {status['epoch']}  {status['phase']:<9}"
                    f" submissions {status['submissions']}  held-out loss {f'{loss:.4f}' if loss else '-'}"
                )
            if first_coin is None and issued > 0:
                first_coin = time.monotonic() - self.started
                note(f"first coins minted {first_coin:.0f} s after the chain's start")
            for e in sorted(epochs, key=lambda e: e["epoch"]):
                number = e["epoch"]
                if number not in shown:
                    shown.add(number)
                    refused = sum(e["refused"].values())
                    note(
                        f"epoch {number}: held-out loss {e['loss_before']:.4f} -> {e['loss_after']:.4f}"
                        f" (se {e['loss_standard_error']:.4f})  accepted {e['accepted']} late {e['late']} refused {refused}"
                        f"  update ≤ {e['update_bytes_max']:,} bytes"
                    )
                if e["settlement"] == "forfeited":
                    raise Failure(f"epoch {number} was forfeited: nothing in it was accepted, or it was not attested in time")
                if e["settlement"] == "settled" and number not in settled:
                    settled[number] = e
                    note(f"epoch {number}: settled in block {e['settled_block']}, {alice(minted[number])} ALICE minted")
            self.tick(status)
            if len(settled) >= self.options.epochs:
                self.first_coin_seconds = first_coin
                numbers = sorted(settled)
                if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
                    raise Failure(f"epochs {numbers} were settled: one in between was not")
                return [settled[number] for number in numbers]
            time.sleep(1)

    def tick(self, status):
        """Called about once a second with the parameter server's status; the end-to-end test interferes here."""

    def check_pay(self, epoch):
        """Recomputes an epoch's pay from its published manifest and compares it with what the chain minted."""
        manifest = http_json(f"{self.ps_url}/v1/epochs/{epoch}/manifest")
        total = int(manifest["total_score"])
        if total != sum(e["score"] for e in manifest["entries"]):
            raise Failure(f"epoch {epoch}: the manifest's total score is not the sum of its entries")
        shares = sum(budget(epoch) * e["score"] // total for e in manifest["entries"])
        minted = self.chain.issued_in(epoch)
        if minted != shares or minted > budget(epoch):
            raise Failure(f"epoch {epoch}: minted {minted}, the shares sum to {shares} of a budget of {budget(epoch)} planck")

    def finish(self, epochs):
        for m in self.miners:
            history = http_json(f"{self.ps_url}/v1/miners/{m['address']}")
            m.update(submitted=history["submitted"], accepted=history["accepted"])
        for e in epochs:
            self.check_pay(e["epoch"])
            e["minted"] = self.chain.issued_in(e["epoch"])
        for m in self.miners:
            m["balance"] = self.chain.balance(m["account"])
        issued, held = self.chain.issuance(), sum(m["balance"] for m in self.miners)
        summary = {
            "genesis_hash": self.genesis,
            "ws_url": self.ws_url,
            "ps_url": self.ps_url,
            "run": self.options.run,
            "model_parameters": self.parameters,
            "first_coins_seconds": round(self.first_coin_seconds, 1),
            "epochs": [
                {
                    "epoch": e["epoch"],
                    "model_root": e["model_root"],
                    "loss_before": e["loss_before"],
                    "loss_after": e["loss_after"],
                    "loss_standard_error": e["loss_standard_error"],
                    "submitted": e["submitted"],
                    "accepted": e["accepted"],
                    "late": e["late"],
                    "refused": e["refused"],
                    "update_bytes_max": e["update_bytes_max"],
                    "budget_planck": str(budget(e["epoch"])),
                    "minted_planck": str(e["minted"]),
                    "settled_block": e["settled_block"],
                }
                for e in epochs
            ],
            "miners": [
                {
                    "address": m["address"],
                    "submitted": m["submitted"],
                    "accepted": m["accepted"],
                    "balance_planck": str(m["balance"]),
                }
                for m in self.miners
            ],
        }
        text = json.dumps(summary, indent=2) + "\n"
        partial = self.dir / "summary.json.part"
        partial.write_text(text)
        partial.rename(self.dir / "summary.json")

        say()
        say(f"{'miner':<50} {'submitted':>9} {'accepted':>8} {'balance (ALICE)':>20}")
        for m in self.miners:
            say(f"{m['address']:<50} {m['submitted']:>9} {m['accepted']:>8} {alice(m['balance']):>20}")
        say(f"{'total issuance on chain':<50} {'':>9} {'':>8} {alice(issued):>20}")
        # Each epoch's losses before and after are on the same text, so the differences add up and so do their variances.
        gain = sum(e["loss_before"] - e["loss_after"] for e in epochs)
        se = math.sqrt(sum(e["loss_standard_error"] ** 2 for e in epochs))
        say(f"held-out loss {epochs[0]['loss_before']:.4f} -> {epochs[-1]['loss_after']:.4f} over {len(epochs)} epochs, fell by {gain:.4f} ± {se:.4f}")
        say(f"summary: {self.dir / 'summary.json'}")
        if issued != held:
            raise Failure(f"total issuance is {issued} planck, the miners hold {held}")
        if not gain > 3 * se:
            raise Failure("the held-out loss did not fall by more than 3 standard errors")


def parser():
    parser = argparse.ArgumentParser(
        prog="scripts/localnet.sh",
        description="Runs a whole Alice network on this machine: validators, a parameter server, miners.",
        epilog="example: scripts/localnet.sh --epochs 5 --miners 4 --keep",
    )
    parser.add_argument("--epochs", type=int, default=3, metavar="N", help="stop when N epochs are settled (default 3)")
    parser.add_argument("--miners", type=int, default=3, metavar="M", help="miners (default 3)")
    parser.add_argument("--validators", type=int, default=2, metavar="V", help="validators, 1 to 6 (default 2)")
    parser.add_argument("--device", default="cpu", metavar="D", help="device of the miners and the parameter server (default cpu)")
    parser.add_argument("--run", default="dev", metavar="NAME", help="run specification in chain-spec/runs (default dev)")
    parser.add_argument("--dir", default=str(ROOT / ".localnet"), help="where state, logs and summary.json go (default ./.localnet)")
    parser.add_argument("--check-arguments", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help="stay up after the last epoch until Ctrl-C")
    return parser


def run(net, after=None):
    """Runs a network to its end; `after` is called while it is still up. Returns the exit code."""

    def interrupted(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
    try:
        if net.options.check_arguments:
            net.check_options()
            return 0
        net.prepare()
        net.start()
        net.finish(net.watch())
        if after:
            after()
        if net.options.keep:
            note("the network stays up; Ctrl-C stops it")
            try:
                while True:
                    net.processes.check()
                    time.sleep(1)
            except KeyboardInterrupt:
                note("stopping")
        return 0
    except KeyboardInterrupt:
        note("stopping before the work is done")
        return 130
    except OutputClosed:
        return 128 + signal.SIGPIPE
    except (Failure, Refused) as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 1
    except NOT_NOW as problem:
        print(f"error: a program of the network stopped answering: {problem}; logs are in {net.dir / 'logs'}", file=sys.stderr)
        return 1
    except OSError as problem:
        # A full disk, a directory that went away, too many open files: the system's own words name the file.
        print(f"error: {problem}", file=sys.stderr)
        return 1
    finally:
        if net.processes:
            net.processes.stop()


if __name__ == "__main__":
    sys.exit(run(Localnet(parser().parse_args())))
