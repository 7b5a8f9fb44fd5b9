"""Compares `alice-miner generate` with `transformers`: tokens a second on the same folder, threads and prompt.

    python3 tests/weights.py                       makes the environment with transformers, once
    VENV=${ALICE_CACHE:-$HOME/.cache/alice}/weights-venv
    $VENV/bin/python bench/generate.py --make /tmp/alice-bench
    $VENV/bin/python bench/generate.py --miner target/release/alice-miner /tmp/alice-bench/*

`--make DIR` writes folders with random weights: the shapes of the runs `dev` and `small`, and one of 353 million weights,
in f32 and bf16. With `--tokenizer DIR` the last one only, with the tokenizer files (of 8,192 pieces) found there. Both
programs take turns; each figure is the median of the rounds, for the tokens after the first one (so without loading and
without the prompt): tokens a second, and tokens for each second of processor time, which other load on the machine disturbs
less. Greedy, one text. Numbers: as the folder stores them in `transformers`, what `--precision auto` chooses in ours.
"""

import argparse
import json
import os
import pathlib
import resource
import shutil
import statistics
import subprocess
import sys
import time

sys.setdlopenflags(os.RTLD_LAZY)  # tests/weights.py says why
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", OMP_WAIT_POLICY="passive")
import torch  # noqa: E402
import transformers  # noqa: E402

transformers.utils.logging.disable_progress_bar()
ROOT = pathlib.Path(__file__).resolve().parent.parent
# vocabulary, width, blocks, heads, key/value heads, feed-forward width, context
SHAPES = {
    "dev": (259, 128, 4, 4, 4, 344, 128),
    "small": (259, 384, 12, 6, 6, 1024, 512),
    "353m": (8192, 1024, 24, 16, 16, 2816, 2048),
}  # fmt: skip
PROMPT = "The State of the Union"


def make(target, tokenizer):
    programs = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    build = ("cargo", "build", "--quiet", "--release", "--locked", "-p", "alice-tokenizer", "--example", "tokenizer")
    if not tokenizer:
        subprocess.run(build, check=True, cwd=ROOT)
    texts = pathlib.Path(os.environ.get("ALICE_CACHE", pathlib.Path.home() / ".cache/alice")) / "corpus-sotu"
    torch.manual_seed(1)
    for name, (vocab, hidden, layers, heads, kv_heads, ffn, context) in SHAPES.items():
        if tokenizer and vocab != 8192:
            continue
        config = transformers.LlamaConfig(
            vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, intermediate_size=ffn, max_position_embeddings=context, rms_norm_eps=1e-5,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
        for dtype in (torch.float32, torch.bfloat16):
            out = target / f"{name}-{'f32' if dtype == torch.float32 else 'bf16'}"
            model.to(dtype).save_pretrained(out)
            if tokenizer:
                for file in tokenizer.glob("tokenizer*"):
                    shutil.copy(file, out)
                continue
            command = ("bytes", out) if vocab == 259 else ("train", str(vocab), out, texts)
            subprocess.run([programs / "release/examples/tokenizer", *command], check=True, stdout=subprocess.DEVNULL)
            print(f"{out}: {sum(p.numel() for p in model.parameters()):,} weights")


def ours(miner, folder, threads, tokens):
    """Tokens a second and a processor second; the answer."""

    def answer(count):
        command = [miner, "generate", "--model", folder, "--prompt", PROMPT, "--temperature", "0", "--max-tokens", str(count),
                   "--threads", str(threads), "--device", "cpu", "--json"]  # fmt: skip
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    # The first token alone: loading and the prompt.
    _, first = answer(1)
    done, everything = answer(tokens)
    more = len(done["tokens"]) - 1
    return done["tokens_per_second"], more / max(everything - first, 1e-9), done


def theirs(model, ids, tokens):
    """Tokens a second and a processor second, of all tokens less the first one, which includes the prompt."""

    def seconds(count):
        started, processor = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, temperature=None, top_p=None,
                max_new_tokens=count, min_new_tokens=count, pad_token_id=0,
            )  # fmt: skip
        return time.perf_counter() - started, time.process_time() - processor

    first, everything = seconds(1), seconds(tokens)
    return [(tokens - 1) / (e - f) for e, f in zip(everything, first)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--tokenizer", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--miner", default="target/release/alice-miner")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("folders", type=pathlib.Path, nargs="*")
    options = parser.parse_args()
    if options.make:
        make(options.make, options.tokenizer)
    if options.folders:
        print(f"| folder | threads | numbers, ours | tokens/s, ours | transformers {transformers.__version__} | ratio "
              "| tokens a processor second, ours | transformers | ratio |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
    for folder in options.folders:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        for threads in options.threads:
            torch.set_num_threads(threads)
            rounds = []
            for _ in range(options.rounds):
                *mine, done = ours(options.miner, folder, threads, options.tokens)
                # A prompt of the same length: what it says makes no difference to the time.
                ids = torch.full((1, done["prompt_tokens"]), 100)
                rounds.append((*mine, *theirs(model, ids, options.tokens)))
            wall, processor, other_wall, other_processor = map(statistics.median, zip(*rounds))
            print(
                f"| {folder.name} | {threads} | {done['precision']} | {wall:.1f} | {other_wall:.1f} | {wall / other_wall:.2f} "
                f"| {processor:.1f} | {other_processor:.1f} | {processor / other_processor:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
