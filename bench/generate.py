"""`alice-miner generate` beside `transformers`: tokens a second on the same folder, threads and prompt.

    python3 tests/weights.py                       makes the environment with transformers, once
    VENV=${ALICE_CACHE:-$HOME/.cache/alice}/weights-venv
    $VENV/bin/python bench/generate.py --make /tmp/alice-bench
    $VENV/bin/python bench/generate.py --miner target/release/alice-miner /tmp/alice-bench/*

`--make DIR` writes folders with random weights: the shapes of the runs `dev` and `small`, and one of 353 million weights,
in f32 and bf16. Both programs take turns; each figure is the median of the rounds, for the tokens after the first one (so
without loading and without the prompt). Greedy, one text. Numbers: as the folder stores them in `transformers`, what
`--precision auto` chooses in ours.
"""

import argparse
import json
import os
import pathlib
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


def make(target):
    programs = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    build = ("cargo", "build", "--quiet", "--release", "--locked", "-p", "alice-tokenizer", "--example", "tokenizer")
    subprocess.run(build, check=True, cwd=ROOT)
    texts = pathlib.Path(os.environ.get("ALICE_CACHE", pathlib.Path.home() / ".cache/alice")) / "corpus-sotu"
    torch.manual_seed(1)
    for name, (vocab, hidden, layers, heads, kv_heads, ffn, context) in SHAPES.items():
        config = transformers.LlamaConfig(
            vocab_size=vocab, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads,
            num_key_value_heads=kv_heads, intermediate_size=ffn, max_position_embeddings=context, rms_norm_eps=1e-5,
        )  # fmt: skip
        model = transformers.LlamaForCausalLM(config)
        for dtype in (torch.float32, torch.bfloat16):
            out = target / f"{name}-{'f32' if dtype == torch.float32 else 'bf16'}"
            model.to(dtype).save_pretrained(out)
            command = ("bytes", out) if vocab == 259 else ("train", str(vocab), out, texts)
            subprocess.run([programs / "release/examples/tokenizer", *command], check=True, stdout=subprocess.DEVNULL)
            print(f"{out}: {sum(p.numel() for p in model.parameters()):,} weights")


def ours(miner, folder, threads, tokens):
    command = [miner, "generate", "--model", folder, "--prompt", PROMPT, "--temperature", "0", "--max-tokens", str(tokens),
               "--threads", str(threads), "--device", "cpu", "--json"]  # fmt: skip
    done = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return done["tokens_per_second"], done


def theirs(model, ids, tokens):
    """Time of all tokens less the time of the first one, which includes the prompt."""

    def seconds(count):
        started = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, temperature=None, top_p=None,
                max_new_tokens=count, min_new_tokens=count, pad_token_id=0,
            )  # fmt: skip
        return time.perf_counter() - started, out[0, ids.shape[1] :].tolist()

    first, _ = seconds(1)
    everything, out = seconds(tokens)
    return (tokens - 1) / (everything - first), out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--make", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--miner", default="target/release/alice-miner")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("folders", type=pathlib.Path, nargs="*")
    options = parser.parse_args()
    if options.make:
        make(options.make)
    if options.folders:
        print(f"| folder | threads | numbers, ours | ours, tokens/s | transformers {transformers.__version__} | ratio |")
        print("|---|---|---|---|---|---|")
    for folder in options.folders:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        for threads in options.threads:
            torch.set_num_threads(threads)
            mine, other = [], []
            for _ in range(options.rounds):
                speed, done = ours(options.miner, folder, threads, options.tokens)
                mine.append(speed)
                # The same prompt: byte tokens, or whatever our tokenizer makes of it, is only its length here.
                ids = torch.full((1, done["prompt_tokens"]), 100)
                other.append(theirs(model, ids, options.tokens)[0])
            a, b = statistics.median(mine), statistics.median(other)
            print(f"| {folder.name} | {threads} | {done['precision']} | {a:.1f} | {b:.1f} | {a / b:.2f} |", flush=True)


if __name__ == "__main__":
    main()
