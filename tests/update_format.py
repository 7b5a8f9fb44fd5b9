"""A second reader of updates and published aggregates, written from docs/spec/update.md and nothing else.

Reads the golden files and compares every entry, bit by bit, with the listings beside them. Standard library only.
"""

import pathlib
import struct
import unittest

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "crates/update/golden"
# The layout of the golden files: lengths of the tensors, chunk, update.k_max.
TENSORS, CHUNK, K_MAX = [10, 256, 0, 1000, 1, 513], 256, 64
MANTISSAS = [0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7]


class Malformed(Exception):
    """The bytes are not what the specification allows."""


def f32(value):
    """Rounds to the nearest f32. Exact for a product of two f32, whose 48-bit result a double holds."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def bits_of(value):
    return struct.unpack("<I", struct.pack("<f", value))[0]


def scale(code):
    mantissa = struct.unpack("<f", struct.pack("<I", MANTISSAS[code % 8]))[0]
    return mantissa * 2.0 ** (code // 8 - 28)


def chunks():
    start = 0
    for length in TENSORS:
        for at in range(0, length, CHUNK):
            yield start + at, min(CHUNK, length - at)
        start += length


def share(count, length):
    """What a chunk gets of `count` entries for each full chunk."""
    return min(length, -(-count * length // CHUNK))


class Bits:
    """The first bit is the least significant of the first byte; numbers come lowest bit first."""

    def __init__(self, data):
        self.number, self.left = int.from_bytes(data, "little"), 8 * len(data)

    def read(self, count):
        if count > self.left:
            raise Malformed("the stream ends early")
        value = self.number & ((1 << count) - 1)
        self.number >>= count
        self.left -= count
        return value

    def unary(self):
        count = 0
        while self.read(1):
            count += 1
        return count

    def end(self):
        if self.left >= 8 or self.number:
            raise Malformed("something follows the last chunk")


def positions_and_codes(bits, length, count, code_bits):
    x = 24 * (length - count) // (25 * (count + 1))
    r = max(x.bit_length() - 1, 0)
    following = 0
    for _ in range(count):
        gap = bits.unary() << r
        gap += bits.read(r)
        if following + gap >= length:
            raise Malformed("a position beyond its chunk")
        yield following + gap, bits.read(code_bits)
        following += gap + 1


def fraction(level, bits):
    if bits == 1:
        return 1.0
    if bits == 2:
        return (0.625, 1.0)[level]
    return (level + 1) / 2 ** (bits - 1)


def read_update(data, value_bits):
    """Header fields and entries (coordinate, value) of an update."""
    if data[:4] != b"ALU1" or len(data) < 76:
        raise Malformed("no update")
    run, root = data[4:36], data[40:72]
    epoch, base_count = int.from_bytes(data[36:40], "little"), int.from_bytes(data[72:76], "little")
    if base_count > K_MAX:
        raise Malformed("base count above k_max")
    bits, entries = Bits(data[76:]), []
    for start, length in chunks():
        cap, base = share(K_MAX, length), share(base_count, length)
        if not bits.read(1):
            count = base
        elif not bits.read(1):
            count = base + 1
            if base >= cap:
                raise Malformed("one more than there can be")
        else:
            count = bits.read(cap.bit_length())
            if count > cap or count == base or (base < cap and count == base + 1):
                raise Malformed("a count in a longer form than it needs, or above the cap")
        if count == 0:
            continue
        s = scale(bits.read(8))
        for position, code in positions_and_codes(bits, length, count, value_bits):
            value = f32(s * fraction(code >> 1, value_bits))
            entries.append((start + position, -value if code & 1 else value))
    bits.end()
    return run, epoch, root, entries


def read_aggregate(data):
    if data[:4] != b"ALD1" or not 1 <= data[4] <= 8:
        raise Malformed("no aggregate")
    level_bits, bits, entries = data[4], Bits(data[5:]), []
    for start, length in chunks():
        count = bits.read(length.bit_length())
        if count > length:
            raise Malformed("more entries than coordinates")
        if count == 0:
            continue
        s = 2.0 * scale(bits.read(8))
        for position, code in positions_and_codes(bits, length, count, level_bits):
            value = f32(s * f32(((code >> 1) + 1) / 2 ** (level_bits - 1)))
            entries.append((start + position, -value if code & 1 else value))
    bits.end()
    return entries


def listed(name):
    lines = (GOLDEN / name).read_text().split("\n")
    return [(int(index), int(bits, 16)) for index, bits in (line.split() for line in lines if line)]


class Format(unittest.TestCase):
    def test_updates(self):
        for value_bits in (1, 2, 4, 8):
            run, epoch, base, entries = read_update((GOLDEN / f"update-{value_bits}bit.alu").read_bytes(), value_bits)
            self.assertEqual((run, epoch, base), (bytes([1] * 32), 7, bytes([2] * 32)))
            self.assertEqual([(i, bits_of(v)) for i, v in entries], listed(f"update-{value_bits}bit.txt"))
            self.assertGreater(len(entries), 100)

    def test_aggregate(self):
        for level_bits in (2, 4, 8):
            entries = read_aggregate((GOLDEN / f"aggregate-{level_bits}bit.ald").read_bytes())
            self.assertEqual([(i, bits_of(v)) for i, v in entries], listed(f"aggregate-{level_bits}bit.txt"))
            self.assertGreater(len(entries), 100)

    def test_one_set_of_entries_has_one_encoding(self):
        data = (GOLDEN / "update-2bit.alu").read_bytes()
        original = read_update(data, 2)
        refused = 0
        for bit in range(8 * len(data)):
            flipped = bytearray(data)
            flipped[bit // 8] ^= 1 << bit % 8
            try:
                self.assertNotEqual(read_update(bytes(flipped), 2), original)
            except Malformed:
                refused += 1
        self.assertGreater(refused, 100)
        for end in range(len(data)):
            with self.assertRaises(Malformed):
                read_update(data[:end], 2)


if __name__ == "__main__":
    unittest.main()
