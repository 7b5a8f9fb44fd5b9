"""Compares the trainer with PyTorch: the same model, first weights, text, batches, optimiser and threads, in turns.

    scripts/build.sh --fast && python3 bench/trainer.py [--model small] [--rounds 3] [--threads 2] [--device cuda] [--bf16]

Needs torch 2.13.0; if this Python has none, that of tests/weights.py ($ALICE_CACHE/weights-venv) is used. PyTorch runs
the model eager and, with a C++ compiler and Python's headers, compiled (torch.compile, its defaults). Each
round runs every program once, in a process of its own; speeds are medians over all steps but the first two of each run.
On a machine that others use too, compare tokens for each CPU-second with one thread. With --bf16 ours computes in bf16, and
PyTorch under torch.autocast.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("ALICE_CACHE", pathlib.Path.home() / ".cache/alice"))
WARM_UP = 2
MODELS = {  # hidden, layers, heads, ffn, vocab, context: as in lab/src/trainer/case.rs and chain-spec/runs
    "dev": (128, 4, 4, 344, 259, 128),
    "small": (384, 12, 6, 1024, 259, 512),
    "10m": (256, 10, 4, 704, 4096, 256),
    "50m": (512, 12, 8, 1408, 8192, 256),
    "1b": (2048, 22, 16, 5632, 32000, 256),
}
NAMES = ["input_layernorm", "q_proj", "k_proj", "v_proj", "o_proj", "post_attention_layernorm", "gate_proj", "up_proj", "down_proj"]


def shapes(model):
    hidden, layers, _, ffn, vocab, _ = MODELS[model]
    square, wide = (hidden, hidden), (ffn, hidden)
    block = [(hidden,), square, square, square, square, (hidden,), wide, wide, (hidden, ffn)]
    return [(vocab, hidden), *(block * layers), (hidden,), (vocab, hidden)]


def torch_child(args):
    """Trains with PyTorch; prints losses and seconds of each step."""
    sys.setdlopenflags(os.RTLD_LAZY)  # the wheel's CUDA libraries may be empty ones (tests/weights.py)
    import numpy
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(args.threads)
    args.device = {"metal": "mps"}.get(args.device, args.device)
    hidden, layers, heads, ffn, vocab, context = MODELS[args.model]
    inner = json.loads(args.inner)
    values = torch.from_numpy(numpy.fromfile(args.theta, dtype="<f4"))
    parameters, at = [], 0
    for shape in shapes(args.model):
        size = numpy.prod(shape)
        parameters.append(torch.nn.Parameter(values[at : at + size].view(shape).to(args.device, copy=True)))
        at += size
    tokens = torch.from_numpy(numpy.fromfile(args.tokens, dtype="<u2").astype("int64")).view(-1, args.batch, context).to(args.device)
    dim = hidden // heads
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.outer(torch.arange(context, dtype=torch.float32), frequencies.float())
    angles = torch.cat([angles, angles], -1)
    cos, sin = angles.cos().to(args.device), angles.sin().to(args.device)

    def norm(x, weight):
        return F.rms_norm(x, (hidden,), weight, 1e-5)

    def rotate(x):
        first, second = x.chunk(2, -1)
        return x * cos[: x.shape[2]] + torch.cat([-second, first], -1) * sin[: x.shape[2]]

    def block(x, p):
        batch, length, _ = x.shape
        normed = norm(x, p["input_layernorm"])
        q, k, v = (F.linear(normed, p[n]).view(batch, length, heads, dim).transpose(1, 2) for n in ("q_proj", "k_proj", "v_proj"))
        mixed = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        x = x + F.linear(mixed.transpose(1, 2).reshape(batch, length, hidden), p["o_proj"])
        normed = norm(x, p["post_attention_layernorm"])
        return x + F.linear(F.silu(F.linear(normed, p["gate_proj"])) * F.linear(normed, p["up_proj"]), p["down_proj"])

    blocks = [dict(zip(NAMES, parameters[1 + 9 * i : 10 + 9 * i])) for i in range(layers)]

    def loss_of(batch):
        x = F.embedding(batch, parameters[0])
        for p in blocks:
            x = block(x, p)
        logits = F.linear(norm(x[:, :-1], parameters[-2]), parameters[-1])
        return F.cross_entropy(logits.reshape(-1, vocab), batch[:, 1:].reshape(-1))

    matrices, vectors = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}],
        lr=inner["learning_rate"],
        betas=(inner["beta1"], inner["beta2"]),
        eps=inner["epsilon"],
        weight_decay=inner["weight_decay"],
    )
    if args.program == "compile":
        loss_of = torch.compile(loss_of)
    losses, seconds, cpu = [], [], []
    for batch in tokens:
        before, cpu_before = time.perf_counter(), time.process_time()
        optimizer.zero_grad()
        with torch.autocast(args.device.split(":")[0], torch.bfloat16, enabled=args.bf16):
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, inner["clip_norm"])
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - before)
        cpu.append(time.process_time() - cpu_before)
    print(json.dumps({"losses": losses, "seconds": seconds, "cpu": cpu, "torch": torch.__version__}))


def ours(args, theta, tokens):
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    # Both profiles run the same libtorch, which is where the time goes.
    built = [target / profile / "trainer" for profile in ("release", "debug")]
    program = next((path for path in built if path.exists()), None) or sys.exit("error: build the trainer first (see above)")
    command = [program, "speed", "--model", args.model, "--theta", theta, "--tokens", tokens]
    command += ["--steps", args.steps, "--batch", args.batch, "--threads", args.threads, "--device", args.device]
    return command + ["--bf16"] * args.bf16


def theirs(args, program, theta, tokens, inner):
    command = [args.python, __file__, "--program", program, "--model", args.model, "--theta", theta, "--tokens", tokens]
    command += ["--batch", args.batch, "--threads", args.threads, "--device", args.device, "--inner", json.dumps(inner)]
    return command + ["--bf16"] * args.bf16


def inputs(args, theta, tokens):
    command = [args.python, __file__, "--program", "inputs", "--model", args.model, "--theta", theta, "--tokens", tokens]
    return [*command, "--steps", args.steps, "--batch", args.batch]


def run(command):
    environment = dict(os.environ, OMP_WAIT_POLICY="passive")
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no output")
    return json.loads(done.stdout.splitlines()[-1])


def python_with_torch():
    for python in (sys.executable, CACHE / "weights-venv/bin/python"):
        check = "import sys, os; sys.setdlopenflags(os.RTLD_LAZY); import torch, numpy; print(torch.__version__)"
        done = subprocess.run([str(python), "-c", check], capture_output=True, text=True) if os.path.exists(python) else None
        if done and done.returncode == 0:
            if done.stdout.strip().split("+")[0] != "2.13.0":
                print(f"note: {python} has torch {done.stdout.strip()}, ours is 2.13.0")
            return python
    sys.exit("error: no Python with torch and numpy; run tests/weights.py once, or: pip install torch==2.13.0 numpy")


def inputs_child(args):
    """First weights (normal, 0.02; norms one) and real text, or pseudo-random tokens for larger vocabularies."""
    import numpy

    generator = numpy.random.default_rng(1)
    with open(args.theta, "wb") as file:
        for shape in shapes(args.model):
            values = numpy.ones(shape, "<f4") if len(shape) == 1 else generator.standard_normal(shape, "f4") * numpy.float32(0.02)
            values.astype("<f4").tofile(file)
    vocab, context = MODELS[args.model][4:]
    text = numpy.frombuffer((ROOT / "LICENSE").read_bytes(), "u1").astype("i8")
    at = numpy.arange(args.steps * args.batch * context)
    first, second = text[at % len(text)], text[(at + 1) % len(text)]
    (first + 3 if vocab == 259 else (first * 31 + second) % vocab).astype("<u2").tofile(args.tokens)


def measure(args):
    args.python = python_with_torch()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        theta, tokens = (pathlib.Path(folder) / name for name in ("theta.f32", "tokens.u16"))
        subprocess.run([str(c) for c in inputs(args, theta, tokens)], check=True)
        inner, programs = None, ["alice", "eager"] + (["compile"] if args.compile else [])
        for _ in range(args.rounds):
            for program in list(programs):
                try:
                    command = ours(args, theta, tokens) if program == "alice" else theirs(args, program, theta, tokens, inner)
                    result = run(command)
                except RuntimeError as error:
                    if program != "compile":
                        sys.exit(f"error: {program}: {error}")
                    print(f"torch.compile does not work here: {error}")
                    programs.remove(program)
                    continue
                inner = result.get("inner", inner)
                results.setdefault(program, []).append(result)
    tokens_a_step = args.batch * MODELS[args.model][5]
    where = f"{args.threads} threads" if args.device == "cpu" else args.device
    print(f"model {args.model}{', bf16' * args.bf16}, {where}, {args.rounds} rounds of {args.steps} steps of {tokens_a_step} tokens\n")
    print("| program | tokens/s (median step) | alice / it | tokens/CPU-s | alice / it | last loss | largest difference of losses |")
    print("|---|---|---|---|---|---|---|")

    def speeds(key):
        medians = {p: statistics.median(s for run in runs for s in run[key][WARM_UP:]) for p, runs in results.items()}
        return {program: tokens_a_step / median for program, median in medians.items()}

    wall, cpu = speeds("seconds"), speeds("cpu")
    for program, runs in results.items():
        apart = max(abs(a - b) for run in runs for a, b in zip(run["losses"], results["alice"][0]["losses"]))
        ratios = [f"{s[program]:.0f} | {s['alice'] / s[program]:.2f}" for s in (wall, cpu)]
        print(f"| {program} | {' | '.join(ratios)} | {runs[0]['losses'][-1]:.6f} | {apart:.1e} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:N or metal")
    parser.add_argument("--bf16", action="store_true", help="products in bf16")
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    for hidden in ("--program", "--theta", "--tokens", "--inner"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    {None: measure, "inputs": inputs_child}.get(args.program, torch_child)(args)


if __name__ == "__main__":
    main()
