"""Checks and measures a GPU: everything that this project claims about a device, in one run.

    scripts/build.sh --fast && python3 bench/device.py [--device cuda] [STEP …]

Steps: agree (the same tasks on the device and on the CPU; also with too little memory), generate (the same greedy text on
both), memory (peak against `alice-miner plan`, genesis-7b among them), speed (against PyTorch, eager and compiled), network (a
localnet whose miners and parameter server use the device). Prints Markdown. Ends with an error if a step failed; the others
run all the same.

The device must be otherwise idle. Programs are taken from $CARGO_TARGET_DIR or ./target; genesis-7b needs 60 GiB of the
host's memory (its weights in f32, twice in part) and is left out where there is less.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
HOST_BYTES_7B = 60 << 30


def program(name):
    built = [TARGET / profile / name for profile in ("release", "debug")]
    return next((path for path in built if path.exists()), None) or sys.exit(f"error: {name} is not built; run scripts/build.sh")


def run(*command):
    print(f"\n$ {' '.join(str(c).replace(str(TARGET), 'target').replace(str(ROOT) + '/', '') for c in command)}", flush=True)
    subprocess.run([str(c) for c in command], check=True, cwd=ROOT, env=dict(os.environ, OMP_WAIT_POLICY="passive"))


def agree(args):
    # Only CUDA says how much memory is free, to be filled.
    short = ["--short-of-memory"] * args.device.startswith("cuda")
    run(program("trainer"), "agree", "--device", args.device, "--threads", 8, *short)


def generate(args):
    """Random weights as Hugging Face would store them; both devices write from them."""
    if not args.tokenizer:
        print("left out: no --tokenizer DIR")
        return
    tokenizer = pathlib.Path(args.tokenizer).resolve()
    if not any(tokenizer.glob("tokenizer*")):
        raise RuntimeError(f"no tokenizer files in {tokenizer}")
    texts = {}
    with tempfile.TemporaryDirectory() as folder:
        run(args.python, ROOT / "bench/generate.py", "--make", folder, "--tokenizer", tokenizer)
        for precision in ("f32", "bf16"):
            for device in ("cpu", args.device):
                command = [program("alice-miner"), "generate", "--model", f"{folder}/353m-f32", "--prompt", "The State of the Union",
                           "--temperature", 0, "--max-tokens", 100, "--precision", precision, "--device", device, "--json"]  # fmt: skip
                done = json.loads(subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout)
                texts[device] = done["tokens"]
                print(f"353 M weights, {precision}, {device}: {done['tokens_per_second']:.1f} tokens/s")
            same = sum(a == b for a, b in zip(texts["cpu"], texts[args.device]))
            print(f"{precision}: {same} of {len(texts['cpu'])} greedy tokens are the CPU's", flush=True)
            if precision == "f32" and texts["cpu"] != texts[args.device]:
                raise RuntimeError("the device writes another text than the CPU")


def memory(args):
    if not args.device.startswith("cuda"):
        print("left out: this device does not say what is taken of its memory")
        return
    trainer = program("trainer")
    run(trainer, "memory", "--device", args.device, "--all", "--model", "50m", "--fragments", 1, "--micro-batch", 32)
    run(trainer, "memory", "--device", args.device, "--all", "--model", "1b", "--fragments", 8, "--micro-batch", 16)
    if os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") < HOST_BYTES_7B:
        print("genesis-7b is left out: too little memory in the host")
        return
    # What the plan chooses for a card of 24 GiB, whatever the card here has.
    plan = [program("alice-miner"), "plan", "--run", "genesis-7b", "--device", args.device, "--device-memory", "24GiB", "--json"]
    chosen = json.loads(subprocess.run([str(c) for c in plan], check=True, capture_output=True, text=True).stdout)["chosen"]
    options = ["--bf16"] * (chosen["precision"] == "bf16") + ["--moments-8bit"] * (chosen["moments"] == "8bit")
    options += ["--checkpoint"] * chosen["checkpoint"] + ["--micro-batch", chosen["micro_batch"]]
    for fragment in (0, 4):
        run(trainer, "memory", "--device", args.device, "--model", "genesis-7b", "--fragments", 8, "--fragment", fragment, "--json", *options)


def speed(args):
    for model, batch, rounds, bf16 in (("50m", 64, 2, []), ("1b", 32, 1, ["--bf16"])):
        run(sys.executable, ROOT / "bench/trainer.py", "--device", args.device, "--model", model, "--batch", batch, "--rounds", rounds, "--steps", 10, *bf16)


def network(args):
    run(sys.executable, ROOT / "scripts/localnet.py", "--epochs", 2, "--miners", 2, "--validators", 1, "--device", args.device)


STEPS = {"agree": agree, "generate": generate, "memory": memory, "speed": speed, "network": network}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or metal")
    parser.add_argument("--python", default=sys.executable, help="a Python with torch and transformers (for generate)")
    parser.add_argument("--tokenizer", metavar="DIR", help="folder with tokenizer files of 8,192 pieces (for generate)")
    parser.add_argument("steps", nargs="*", metavar="STEP", help=f"{', '.join(STEPS)}; all of them if none is named")
    args = parser.parse_args()
    if unknown := set(args.steps) - set(STEPS):
        parser.error(f"there is no step {', '.join(unknown)}")
    failed = []
    for name, step in STEPS.items():
        if args.steps and name not in args.steps:
            continue
        started = time.monotonic()
        print(f"\n## {name}", flush=True)
        try:
            step(args)
        except Exception as problem:  # whatever it is, the other steps run
            print(f"{name} FAILED: {problem!r} {getattr(problem, 'stderr', None) or ''}", flush=True)
            failed.append(name)
        print(f"\n({name}: {time.monotonic() - started:.0f} s)", flush=True)
    sys.exit(f"error: failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
