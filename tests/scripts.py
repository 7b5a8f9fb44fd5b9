"""The scripts themselves: what they say when something is missing or wrong, and the arithmetic that localnet checks by.

Fast, and without anything built. Run by scripts/test.sh.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

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
