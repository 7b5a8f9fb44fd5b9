"""Measures `alice-ps corpus build` on the text that scripts/setup.sh downloads: speed, duplicates, peak memory.

    python3 bench/corpus.py PATH/TO/alice-ps [COPIES …]

Trains a tokenizer of 4096 ids once. Then, for each number of copies (default 1 20), writes JSON lines with that many copies
of every address, each copy made different by a number in front, and every fifth line twice; builds, and prints a row.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

TEXTS = pathlib.Path(os.environ.get("ALICE_CACHE", pathlib.Path.home() / ".cache/alice")) / "corpus-sotu"


def run(*command):
    """Output of a command, its processor time in seconds and its peak memory in MiB (VmHWM)."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(map(str, command))} failed")
    return output, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main():
    program, copies = sys.argv[1], [int(n) for n in sys.argv[2:]] or [1, 20]
    texts = [path.read_text() for path in sorted(TEXTS.glob("*.txt"))]
    if not texts:
        sys.exit(f"there is no text in {TEXTS}; run scripts/setup.sh")
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        run(program, "tokenizer", "train", "--vocab", "4096", "--input", TEXTS, "--out", work / "tokenizer")
        print("| input, MB | documents | duplicates | tokens | seconds | MB/s | MB a CPU-second | peak memory, MiB |")
        print("|---|---|---|---|---|---|---|---|")
        for n in copies:
            source, out, lines = work / "in.jsonl", work / f"out-{n}", 0
            with source.open("w") as file:
                for copy in range(n):
                    for text in texts:
                        line = json.dumps({"text": f"{copy} {text}"}, ensure_ascii=False) + "\n"
                        lines += 1
                        file.write(line * (2 if lines % 5 == 0 else 1))
            size = source.stat().st_size / 1e6
            command = [program, "corpus", "build", "--source", source, "--license", "PDDL-1.0", "--json"]
            command += ["--tokenizer", work / "tokenizer", "--reserve-permille", "100", "--out", out]
            output, cpu, peak = run(*command)
            done = json.loads(output)
            same = done["left_out"]["duplicate"]
            tokens = done["training"]["tokens"] + done["yardstick"]["tokens"] + done["reserves"][0][1]["tokens"]
            print(
                f"| {size:.1f} | {done['documents']} | {same} ({same / (same + done['documents']):.1%}) | {tokens} "
                f"| {done['seconds']:.2f} | {size / done['seconds']:.1f} | {size / cpu:.1f} | {peak:.0f} |"
            )


if __name__ == "__main__":
    main()
