"""Compares the update codec with torch, on the same data and machine in one run, one thread, processor time.

    python3 -m venv venv && venv/bin/pip install torch==2.13.0 numpy
    cargo build --release -p alice-bench && venv/bin/python bench/codec_torch.py

Two things are timed in torch: chunked top-k alone (abs, topk, gather) and a straightforward encoder in the manner of
SparseLoCo (error feedback, chunked top-k, values of 2 bits, positions of 12 bits, both packed).
"""

import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"
import torch  # noqa: E402  (after the number of threads is set)

ROOT = pathlib.Path(__file__).resolve().parent.parent
CHUNK, VALUES, KS = 4096, 1 << 26, (6, 64)


def cpu_seconds(call):
    """Median processor time of at least five calls after one that warms up."""
    call()
    times = []
    while len(times) < 5:
        before = time.process_time()
        call()
        times.append(time.process_time() - before)
    return statistics.median(times)


def gradient():
    """Heavy-tailed values: normal numbers over a uniform one."""
    generator = torch.Generator().manual_seed(1)
    normal = torch.randn(VALUES, generator=generator)
    return 1e-3 * normal / (0.1 + torch.rand(VALUES, generator=generator))


def top_k(d, k):
    chunks = d.view(-1, CHUNK)
    positions = chunks.abs().topk(k, dim=1, sorted=False).indices
    return positions, chunks.gather(1, positions)


def pack(codes, bits):
    """Packs numbers of 2 or 12 bits into bytes."""
    codes = codes.reshape(-1)
    if bits == 2:
        codes = codes.view(-1, 4).to(torch.uint8)
        return codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6
    pairs = codes.view(-1, 2).to(torch.int32)
    words = pairs[:, 0] | pairs[:, 1] << 12
    return torch.stack([words & 255, words >> 8 & 255, words >> 16], 1).to(torch.uint8)


def encoder(d, residual, k, decay=0.95):
    """Error feedback, top-k, two magnitudes by each chunk's mean, packing, and the residual's update."""
    combined = d + residual
    positions, values = top_k(combined, k)
    magnitudes = values.abs()
    scale = magnitudes.mean(1, keepdim=True) / 0.8125
    high = magnitudes > scale * 0.8125
    codes = high.to(torch.uint8) << 1 | (values < 0).to(torch.uint8)
    packed = pack(positions, 12), pack(codes, 2), scale
    sent = torch.where(high, scale, scale * 0.625) * values.sign()
    combined.view(-1, CHUNK).scatter_add_(1, positions, -sent)
    residual.copy_(combined.mul_(decay))
    return packed


def rust(path):
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    command = [target / "release/codec", "--json", "--file", path, "--k", ",".join(map(str, KS))]
    encoding, _, decoding = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return encoding["rows"], decoding["rows"]


def main():
    torch.set_num_threads(1)
    d = gradient()
    with tempfile.NamedTemporaryFile(suffix=".f32") as file:
        d.numpy().tofile(file.name)
        encoding, decoding = rust(file.name)
    print(f"torch {torch.__version__}, {VALUES} values, chunks of {CHUNK}, 1 thread, millions for each CPU-second\n")
    print("| k | alice encode | torch top-k | ratio | torch encoder | ratio | read pass | alice / read pass | alice decode + apply, entries |")
    print("|---|---|---|---|---|---|---|---|---|")
    residual = torch.zeros_like(d)
    for k, row, decoded in zip(KS, encoding, decoding):
        _, _, ours, read, share = row
        selecting = VALUES / cpu_seconds(lambda: top_k(d, k)) / 1e6
        whole = VALUES / cpu_seconds(lambda: encoder(d, residual, k)) / 1e6
        print(
            f"| {k} | {ours:.0f} | {selecting:.0f} | {ours / selecting:.1f} | {whole:.0f} | {ours / whole:.1f} "
            f"| {read:.0f} | {share:.2f} | {decoded[3]:.0f} |"
        )
    print(f"\nwith the 7B run's budget (k_max 64): {encoding[-1][2]:.0f}, of a read pass {encoding[-1][4]:.2f}")


if __name__ == "__main__":
    main()
