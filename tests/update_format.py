"""A second reader of updates and published aggregates, written from docs/spec/update.md and its sources (RFC 8439, the BLAKE3
paper).

Reads the golden files and compares every entry, bit by bit, with their listings; then takes the model's step from the golden
round's updates, stochastic rounding included. Standard library only.
"""

import math
import pathlib
import struct
import unittest

GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "crates/update/golden"
# Constants of the golden files: lengths of the tensors, chunk, update.k_max, update.budget_bytes.
TENSORS, CHUNK, K_MAX, BUDGET = [10, 256, 0, 1000, 1, 513], 256, 64, 700
MANTISSAS = [0x3F800000, 0x3F8B95C2, 0x3F9837F0, 0x3FA5FED7, 0x3FB504F3, 0x3FC5672A, 0x3FD744FD, 0x3FEAC0C7]


class Malformed(Exception):
    """The bytes are not what the specification allows."""


def f32(value):
    """Rounds to the nearest f32. A double holds the 48 bits of a product of two f32. A sum or a quotient of two f32 is rounded
    twice, which changes nothing, because a double has more than 2 · 24 + 2 bits."""
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
    """Share of a chunk if a full one gets `count` entries."""
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


def rice_parameter(length, count):
    x = 24 * (length - count) // (25 * (count + 1))
    return max(x.bit_length() - 1, 0)


def positions_and_codes(bits, length, count, code_bits):
    r = rice_parameter(length, count)
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
    if data[:4] != b"ALU1" or not 76 <= len(data) <= BUDGET:
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


class Writer:
    """The counterpart of Bits."""

    def __init__(self):
        self.number, self.length = 0, 0

    def write(self, value, count):
        self.number |= value << self.length
        self.length += count

    def bytes(self):
        return self.number.to_bytes(-(-self.length // 8), "little")


def mean(updates, entry_weight):
    """Coordinate to mean, of (entries, factor) in ascending order of id, all of one fragment."""
    sums, senders = {}, {}
    for entries, factor in updates:
        for index, value in entries:
            sums[index] = sums.get(index, 0.0) + f32(f32(factor) * value)
            senders[index] = senders.get(index, 0) + 1
    least = len(updates) / entry_weight
    return {index: f32(sums[index] / max(senders[index], least)) for index in sorted(sums)}


def rotate_left(word, by):
    return (word << by | word >> (32 - by)) & 0xFFFFFFFF


def chacha20_words(key, block):
    """RFC 8439, section 2.3, with a block counter of 64 bits and a nonce of 64 zero bits."""
    start = [*struct.unpack("<4I", b"expand 32-byte k"), *struct.unpack("<8I", key), block & 0xFFFFFFFF, block >> 32, 0, 0]
    state = list(start)

    def quarter(a, b, c, d):
        for x, y, z, by in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            state[x] = (state[x] + state[y]) & 0xFFFFFFFF
            state[z] = rotate_left(state[z] ^ state[x], by)

    for _ in range(10):
        for column in range(4):
            quarter(column, column + 4, column + 8, column + 12)
        for diagonal in range(4):
            quarter(diagonal, (diagonal + 1) % 4 + 4, (diagonal + 2) % 4 + 8, (diagonal + 3) % 4 + 12)
    return [(a + b) & 0xFFFFFFFF for a, b in zip(state, start)]


BLAKE3_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
BLAKE3_ORDER = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
CHUNK_START, CHUNK_END, ROOT, DERIVE_KEY_CONTEXT, DERIVE_KEY_MATERIAL = 1, 2, 8, 32, 64


def blake3_one_chunk(data, key, mode):
    """BLAKE3 of at most 1,024 bytes (the BLAKE3 paper, section 2): eight words."""
    blocks = [data[at : at + 64] for at in range(0, len(data), 64)] or [b""]
    for number, block in enumerate(blocks):
        flags = mode | (CHUNK_START if number == 0 else 0) | (CHUNK_END | ROOT if number + 1 == len(blocks) else 0)
        words = list(struct.unpack("<16I", block.ljust(64, b"\0")))
        state = [*key, *BLAKE3_IV[:4], 0, 0, len(block), flags]

        def quarter(a, b, c, d, first, second):
            for word, by in ((first, (16, 12)), (second, (8, 7))):
                state[a] = (state[a] + state[b] + word) & 0xFFFFFFFF
                state[d] = rotate_left(state[d] ^ state[a], 32 - by[0])
                state[c] = (state[c] + state[d]) & 0xFFFFFFFF
                state[b] = rotate_left(state[b] ^ state[c], 32 - by[1])

        for _ in range(7):
            for column in range(4):
                quarter(column, column + 4, column + 8, column + 12, *words[2 * column : 2 * column + 2])
            for diagonal in range(4):
                quarter(
                    diagonal,
                    (diagonal + 1) % 4 + 4,
                    (diagonal + 2) % 4 + 8,
                    (diagonal + 3) % 4 + 12,
                    *words[8 + 2 * diagonal : 10 + 2 * diagonal],
                )
            words = [words[at] for at in BLAKE3_ORDER]
        key = [state[at] ^ state[at + 8] for at in range(8)]
    return key


def derive_key(context, material):
    key = blake3_one_chunk(context.encode(), BLAKE3_IV, DERIVE_KEY_CONTEXT)
    return struct.pack("<8I", *blake3_one_chunk(material, key, DERIVE_KEY_MATERIAL))


def publish(means, level_bits, key):
    """D of coordinate to mean."""
    writer, levels = Writer(), 2 ** (level_bits - 1)
    for start, length in chunks():
        inside = [(i, v) for i, v in means.items() if start <= i < start + length and v != 0]
        largest = max((abs(v) for _, v in inside), default=0.0)
        code = next((c for c in range(256) if scale(c) >= largest / 2), 255)
        kept = []
        for index, value in inside:
            x = abs(value) * levels / (2.0 * scale(code))
            up = chacha20_words(key, index // 16)[index % 16] < (x - math.floor(x)) * 2.0**32
            level = min(math.floor(x) + up, levels)
            if level > 0:
                kept.append((index - start, level - 1, value < 0))
        writer.write(len(kept), length.bit_length())
        if not kept:
            continue
        writer.write(code, 8)
        r = rice_parameter(length, len(kept))
        following = 0
        for position, level, negative in kept:
            gap = position - following
            writer.write((1 << (gap >> r)) - 1, (gap >> r) + 1)
            writer.write(gap & ((1 << r) - 1), r)
            writer.write(level << 1 | negative, level_bits)
            following = position + 1
    return b"ALD1" + bytes([level_bits]) + writer.bytes()


def step(theta, entries, alpha):
    theta = list(theta)
    for index, value in entries:
        theta[index] = f32(theta[index] - f32(f32(alpha) * value))
    return theta


def read_theta(name):
    data = (GOLDEN / name).read_bytes()
    return list(struct.unpack(f"<{len(data) // 4}f", data))


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

    def test_the_step_of_a_round(self):
        round_ = [read_update((GOLDEN / f"round-{n}.alu").read_bytes(), 2)[3] for n in (1, 2, 3)]
        updates = list(zip(round_, (1.0, 0.8, 1.3)))
        ids = b"".join(bytes([n] * 32) for n in (1, 2, 3))
        key = derive_key("alice/rounding-seed/v1", bytes([9] * 32) + ids)
        for level_bits, entry_weight in ((8, 1), (4, 4), (2, 4)):
            published = publish(mean(updates, entry_weight), level_bits, key)
            self.assertEqual(published, (GOLDEN / f"aggregate-{level_bits}bit.ald").read_bytes())
        d = read_aggregate((GOLDEN / "aggregate-8bit.ald").read_bytes())
        following = step(read_theta("theta.f32"), d, 0.7)
        self.assertEqual(struct.pack(f"<{len(following)}f", *following), (GOLDEN / "theta-next.f32").read_bytes())

    def test_the_streams_are_those_of_their_papers(self):
        # RFC 8439, appendix A.1, test vector 1.
        self.assertEqual(chacha20_words(bytes(32), 0)[:2], [0xADE0B876, 0x903DF1A0])
        # test_vectors.json of BLAKE3, derive_key, input_len 0.
        key = derive_key("BLAKE3 2019-12-27 16:29:52 test vectors context", b"")
        self.assertEqual(key.hex(), "2cc39783c223154fea8dfb7c1b1660f2ac2dcbd1c1de8277b0b0dd39b7e50d7d")

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
