"""Checks the dependency rules of ARCHITECTURE.md against `cargo metadata`. Exits 1 and says which rule is broken."""

import json
import pathlib
import re
import subprocess
import sys

CHAIN_CRATES = {"alice-primitives", "alice-chain", "alice-runtime", "alice-node"}
TORCH_CRATES = {"alice-model", "alice-generate", "alice-trainer", "alice-ps", "alice-miner", "alice-lab"}

metadata = json.loads(
    subprocess.run(["cargo", "metadata", "--format-version", "1", "--locked"], capture_output=True, check=True).stdout
)
names = {p["id"]: p["name"] for p in metadata["packages"]}
members = {i for i in metadata["workspace_members"]}
# Development dependencies do not ship: only normal and build dependencies count.
edges = {
    node["id"]: [d["pkg"] for d in node["deps"] if any(k["kind"] != "dev" for k in d["dep_kinds"])]
    for node in metadata["resolve"]["nodes"]
}


def reachable(start):
    seen, todo = set(), [start]
    while todo:
        for package in edges[todo.pop()]:
            if package not in seen:
                seen.add(package)
                todo.append(package)
    return {names[p] for p in seen}


broken = []
for member in sorted(members, key=names.get):
    name = names[member]
    direct = {names[p] for p in edges[member]}
    is_chain = name in CHAIN_CRATES or name.startswith("pallet-")
    substrate = {d for d in direct if d.startswith(("sp-", "sc-", "frame-", "pallet-", "polkadot-sdk", "subxt"))}
    if substrate and not is_chain:
        broken.append(f"invariant 1: {name} depends on {', '.join(sorted(substrate))}; only {', '.join(sorted(CHAIN_CRATES))} and pallets may")
    if name not in TORCH_CRATES and {"tch", "torch-sys"} & reachable(member):
        broken.append(f"invariant 2: {name} reaches libtorch; only {', '.join(sorted(TORCH_CRATES))} may")
    node_crates = {d for d in reachable(member) if d.startswith("sc-")}
    if name in ("alice-ps", "alice-miner") and node_crates:
        broken.append(f"invariant 1: {name} reaches node crates ({', '.join(sorted(node_crates))})")

# Invariant 4: the words by which a FRAME pallet can create coins, anywhere but in the one pallet that may.
creating = re.compile(r"::issue\(|mint_into|deposit_creating|issue_credit|make_free_balance_be|set_balance\(|rescind|::pair\(")
root = pathlib.Path(__file__).resolve().parent.parent
for source in sorted([*root.glob("pallets/*/src/*.rs"), *root.glob("runtime/src/*.rs")]):
    name = source.relative_to(root).as_posix()
    if name.startswith("pallets/emission/") or source.name == "tests.rs":
        continue
    for number, line in enumerate(source.read_text().splitlines(), 1):
        # pallet-reward asks pallet-emission, which is the way.
        if creating.search(line) and "T::Issuance::issue(" not in line:
            broken.append(f"invariant 4: {name}:{number} can create coins: {line.strip()}")

for line in broken:
    print(f"error: {line}", file=sys.stderr)
if not broken:
    print(f"architecture: dependency rules hold for {len(members)} crates")
sys.exit(1 if broken else 0)
