"""Reads a chain's storage over JSON-RPC, and computes the emission schedule independently of the chain's own code.

Standard library only: an independent reader of what the Rust programs write.
"""

import hashlib
import json
import urllib.request

# Planck in one ALICE.
UNIT = 10**12
# Every server of a localnet listens on this machine. A proxy of the environment (`http_proxy`) could not reach it.
LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Refused(Exception):
    """The chain answered a request with an error."""


def xxh64(data, seed):
    """xxHash64 (public specification); Substrate's storage prefixes are made of it."""
    p1, p2, p3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
    p4, p5, mask = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5, (1 << 64) - 1

    def rotl(x, r):
        return ((x << r) | (x >> (64 - r))) & mask

    def lane(acc, value):
        return rotl((acc + value * p2) & mask, 31) * p1 & mask

    def word(at, size):
        return int.from_bytes(data[at : at + size], "little")

    at = 0
    if len(data) >= 32:
        acc = [(seed + p1 + p2) & mask, (seed + p2) & mask, seed, (seed - p1) & mask]
        while at + 32 <= len(data):
            acc = [lane(a, word(at + 8 * i, 8)) for i, a in enumerate(acc)]
            at += 32
        h = sum(rotl(a, r) for a, r in zip(acc, (1, 7, 12, 18))) & mask
        for a in acc:
            h = ((h ^ lane(0, a)) * p1 + p4) & mask
    else:
        h = (seed + p5) & mask
    h = (h + len(data)) & mask
    while at + 8 <= len(data):
        h = (rotl(h ^ lane(0, word(at, 8)), 27) * p1 + p4) & mask
        at += 8
    if at + 4 <= len(data):
        h = (rotl(h ^ (word(at, 4) * p1 & mask), 23) * p2 + p3) & mask
        at += 4
    while at < len(data):
        h = rotl(h ^ (data[at] * p5 & mask), 11) * p1 & mask
        at += 1
    h = ((h ^ (h >> 33)) * p2) & mask
    h = ((h ^ (h >> 29)) * p3) & mask
    return h ^ (h >> 32)


def twox128(text):
    return b"".join(xxh64(text.encode(), seed).to_bytes(8, "little") for seed in (0, 1))


def storage_key(pallet, item, of_map=b""):
    """Key of a storage value, or of an entry of a map."""
    return twox128(pallet) + twox128(item) + of_map


def blake2_128_concat(key):
    return hashlib.blake2b(key, digest_size=16).digest() + key


def twox_64_concat(key):
    return xxh64(key, 0).to_bytes(8, "little") + key


class Chain:
    """JSON-RPC over HTTP; the node serves both HTTP and WebSocket on its RPC port."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    def call(self, method, *params):
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
        request = urllib.request.Request(self.url, body, {"Content-Type": "application/json"})
        with LOOPBACK.open(request, timeout=10) as answer:
            result = json.load(answer)
        if "error" in result:
            raise Refused(f"the chain refused {method}: {result['error']}")
        return result["result"]

    def storage(self, key):
        value = self.call("state_getStorage", "0x" + key.hex())
        return bytes.fromhex(value[2:]) if value else None

    def best(self):
        return int(self.call("chain_getHeader")["number"], 16)

    def finalized(self):
        return int(self.call("chain_getHeader", self.call("chain_getFinalizedHead"))["number"], 16)

    def balance(self, account):
        info = self.storage(storage_key("System", "Account", blake2_128_concat(account)))
        # AccountInfo: nonce, consumers, providers, sufficients (u32 each), then free balance (u128).
        return int.from_bytes(info[16:32], "little") if info else 0

    def issuance(self):
        value = self.storage(storage_key("Balances", "TotalIssuance"))
        return int.from_bytes(value, "little") if value else 0

    def issued_in(self, epoch):
        value = self.storage(storage_key("Emission", "IssuedByEpoch", twox_64_concat(epoch.to_bytes(4, "little"))))
        return int.from_bytes(value, "little") if value else 0


def cumulative(epoch):
    """C(n) of the emission schedule, written independently of the chain's code (docs/spec/emission.md)."""
    era, position = divmod(epoch, 17_520)
    eras = [10_500_000 * UNIT >> k for k in range(era + 1)]
    return sum(eras[:-1]) + eras[-1] * position // 17_520


def budget(epoch):
    return cumulative(epoch + 1) - cumulative(epoch)
