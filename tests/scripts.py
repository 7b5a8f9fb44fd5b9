"""The scripts themselves: their errors when something is missing or wrong, and the arithmetic that localnet checks by.

Fast, and without anything built. Run by scripts/test.sh.
"""

import http.server
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import unittest

try:
    import tomllib
except ImportError:  # Python before 3.11
    tomllib = None

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import localnet  # noqa: E402


def run(*command, **environment):
    env = {**os.environ, **environment}
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, env=env, timeout=60)


class Scripts(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.dir = pathlib.Path(self.folder.name)
        self.addCleanup(self.folder.cleanup)

    def refused(self, done, words):
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(words, done.stderr)
        self.assertNotIn("Traceback", done.stderr)

    def test_build_without_libtorch_says_what_to_do(self):
        self.refused(run(ROOT / "scripts/build.sh", ALICE_CACHE=self.dir), "run scripts/setup.sh")

    def test_unknown_options_are_refused(self):
        self.refused(run(ROOT / "scripts/setup.sh", "--fats"), "unknown option --fats")
        self.refused(run(ROOT / "scripts/test.sh", "--fats"), "unknown option --fats")
        self.refused(run(ROOT / "scripts/build.sh", "--fats"), "usage")

    def test_localnet_refuses_what_cannot_be(self):
        local = [sys.executable, ROOT / "scripts/localnet.py", "--dir", self.dir / "net"]
        self.refused(run(*local, "--run", "nosuch"), "known runs: dev")
        self.refused(run(*local, "--validators", 7), "--validators")
        self.refused(run(*local, "--miners", 0), "--miners")
        self.refused(run(*local, CARGO_TARGET_DIR=self.dir / "empty"), "is not built")
        programs = self.dir / "target/debug"
        programs.mkdir(parents=True)
        for name in ("alice-node", "alice-ps", "alice-miner"):
            (programs / name).touch()
        self.refused(run(*local, CARGO_TARGET_DIR=self.dir / "target", ALICE_CACHE=self.dir / "cache"), "corpus-sotu")

    def test_localnet_leaves_a_foreign_directory_alone(self):
        precious = self.dir / "logs" / "precious"
        precious.parent.mkdir()
        precious.write_text("mine")
        self.refused(run(sys.executable, ROOT / "scripts/localnet.py", "--dir", self.dir), "nothing was changed")
        self.assertEqual(precious.read_text(), "mine")

    def test_arguments_are_checked_before_the_build(self):
        self.refused(run(ROOT / "scripts/localnet.sh", "--run", "nosuch"), "known runs")
        check = [sys.executable, ROOT / "scripts/localnet.py", "--check-arguments"]
        (self.dir / "file").touch()
        self.refused(run(*check, "--dir", self.dir / "file"), "is a file")
        self.refused(run(*check, "--dir", self.dir / "file/x"), "is a file")
        self.refused(run(*check, "--device", "nonsense"), "cuda:N")
        self.assertEqual(run(*check, "--device", "cuda:1", "--dir", self.dir / "new").returncode, 0)

    @unittest.skipIf(os.getuid() == 0, "root may write everywhere")
    def test_localnet_refuses_a_directory_of_another_user(self):
        self.refused(run(sys.executable, ROOT / "scripts/localnet.py", "--check-arguments", "--dir", "/usr/x"), "another user")

    def test_scripts_start_from_anywhere(self):
        (self.dir / "link.sh").symlink_to(ROOT / "scripts/localnet.sh")
        self.refused(run(self.dir / "link.sh", "--run", "nosuch"), "known runs")
        self.refused(run("sh", ROOT / "scripts/localnet.sh", "--run", "nosuch"), "known runs")

    def test_no_home_is_one_clear_line(self):
        environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "ALICE_CACHE")}
        done = subprocess.run([ROOT / "scripts/localnet.sh"], capture_output=True, text=True, env=environment, timeout=60)
        self.refused(done, "HOME is not set")
        self.assertEqual(done.stderr.count("\n"), 1)

    def test_old_compilers_are_refused_before_anything_is_installed(self):
        for name, version in (("rustc", "rustc 1.60.0 (abc 2022-01-01)"), ("cargo", "cargo 1.60.0")):
            program = self.dir / name
            program.write_text(f"#!/bin/sh\necho '{version}'\n")
            program.chmod(0o755)
        done = run(ROOT / "scripts/setup.sh", PATH=f"{self.dir}:{os.environ['PATH']}", ALICE_CACHE=self.dir / "cache")
        self.refused(done, "the Rust toolchain is 1.60.0")

    def test_a_closed_pipe_ends_localnet_quietly(self):
        code = "import localnet, sys; sys.exit(localnet.run(type('N', (), {'prepare': lambda s: [localnet.note('x') for _ in range(9999)],"
        code += " 'options': type('O', (), {'check_arguments': False}), 'processes': None, 'dir': None})()))"
        done = run("bash", "-c", f'{sys.executable} -c "{code}" | head -1; echo code ${{PIPESTATUS[0]}}', PYTHONPATH=ROOT / "scripts")
        self.assertIn("code 141", done.stdout)
        self.assertEqual(done.stderr, "")

    def test_loopback_is_never_asked_through_a_proxy(self):
        with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            code = f"import localnet; print(localnet.http_json('http://127.0.0.1:{server.server_port}/'))"
            done = run(sys.executable, "-c", code, PYTHONPATH=ROOT / "scripts", http_proxy="http://127.0.0.1:9")
            server.shutdown()
        self.assertEqual(done.stdout, "7\n", done.stderr)

    @unittest.skipUnless(tomllib, "needs Python 3.11")
    def test_paths_are_written_as_toml(self):
        path = 'it"s \\ a \n path'
        self.assertEqual(tomllib.loads(f"x = {localnet.toml_string(path)}")["x"], path)


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers 7 to everything."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"7")

    def log_message(self, *_):
        pass


class Arithmetic(unittest.TestCase):
    def test_xxh64(self):
        # From the specification of xxHash and from Substrate's storage keys.
        self.assertEqual(localnet.xxh64(b"", 0), 0xEF46DB3751D8E999)
        self.assertEqual(localnet.twox128("System").hex(), "26aa394eea5630e07c48ae0c9558cef7")
        self.assertEqual(localnet.twox128("Account").hex(), "b99d880ec681799c0cf30e8886371da9")

    def test_schedule(self):
        self.assertEqual(localnet.budget(0), 599_315_068_493_150)
        self.assertEqual(sum(map(localnet.budget, range(17_520))), 10_500_000 * localnet.UNIT)
        self.assertEqual(localnet.budget(17_520), 299_657_534_246_575)


if __name__ == "__main__":
    unittest.main()
