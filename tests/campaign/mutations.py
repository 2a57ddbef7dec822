"""Ways to spoil a file."""

from __future__ import annotations

import re

import numpy as np

NUMBER = re.compile(rb"-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?")
WORD = re.compile(rb"[A-Za-z_]+")
NUMBERS = (
    b"0", b"-1", b"1e300", b"-1e300", b"nan", b"inf", b"-inf", b"1" * 400, b"9" * 4300, b"1e-300", b"999999999999",
    b"2147483648", b"18446744073709551616", b"", b"x", b"0x10", b"1.5", b"1_000", b"1d5", b"+-3", b"true", b"[]",
)  # fmt: skip
WORDS = (
    b"", b"Xx", b"H", b"Og", b"D", b"X", b"None", b"\xff\xfe", b"\x00", b"a" * 5000, b"\xef\xbb\xbf", b"[[[[", b"\"",
    b"'", b"\\", b"{", b"__class__", b"../../victim", b"/etc/passwd", b"\r", b"\xc3\xa9",
)  # fmt: skip


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """A copy of a file with one to three things wrong."""
    for _ in range(int(rng.integers(1, 4))):
        data = MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, rng)
    return data


def _places(data: bytes, rng: np.random.Generator, n: int) -> list[int]:
    return sorted(int(place) for place in rng.integers(0, len(data) + 1, n))


def _flip(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        if changed:
            changed[int(rng.integers(len(changed)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _cut(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: _places(data, rng, 1)[0]]


def _drop(data: bytes, rng: np.random.Generator) -> bytes:
    a, b = _places(data, rng, 2)
    return data[:a] + data[min(b, a + 200) :]


def _repeat(data: bytes, rng: np.random.Generator) -> bytes:
    a, b = _places(data, rng, 2)
    return data[:a] + data[a : min(b, a + 2000)] * int(rng.integers(2, 5)) + data[a:]


def _drop_line(data: bytes, rng: np.random.Generator) -> bytes:
    lines = data.split(b"\n")
    del lines[int(rng.integers(len(lines)))]
    return b"\n".join(lines)


def _swap_lines(data: bytes, rng: np.random.Generator) -> bytes:
    lines = data.split(b"\n")
    a, b = rng.integers(0, len(lines), 2)
    lines[a], lines[b] = lines[b], lines[a]
    return b"\n".join(lines)


def _replace(pattern: re.Pattern[bytes], choices: tuple[bytes, ...], data: bytes, rng: np.random.Generator) -> bytes:
    found = list(pattern.finditer(data))
    if not found:
        return data
    match = found[int(rng.integers(len(found)))]
    return data[: match.start()] + choices[int(rng.integers(len(choices)))] + data[match.end() :]


def _number(data: bytes, rng: np.random.Generator) -> bytes:
    return _replace(NUMBER, NUMBERS, data, rng)


def _word(data: bytes, rng: np.random.Generator) -> bytes:
    return _replace(WORD, WORDS, data, rng)


def _insert(data: bytes, rng: np.random.Generator) -> bytes:
    place = _places(data, rng, 1)[0]
    return data[:place] + rng.bytes(int(rng.integers(1, 40))) + data[place:]


MUTATIONS = (_flip, _cut, _drop, _repeat, _drop_line, _swap_lines, _number, _number, _number, _word, _word, _insert)
