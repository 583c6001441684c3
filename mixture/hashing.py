"""Hashing by the million."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_SLICE = 65_536  # texts of a column that are Python strings at a time


def mix64(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser, element by element: a bijection of 64-bit integers that scatters neighbours."""
    z = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def derive_key(*numbers: int) -> np.uint64:
    """One key from several integers; the order of the integers matters."""
    key = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        key = mix64(key + np.uint64((number * _GOLDEN + _GOLDEN) & _MASK))
    return np.uint64(key[0])


def digests(texts: "pa.StringArray | pa.ChunkedArray") -> NDArray[np.bytes_]:
    """[N] S16: xxh3-128 of each text of a column, which stands for it where only equality counts."""
    from xxhash import xxh3_128_digest  # here: a reader's machine need not have it

    found = np.empty(len(texts), dtype="S16")
    for start in range(0, len(texts), _SLICE):
        part = texts.slice(start, _SLICE).to_pylist()
        found[start : start + len(part)] = np.frombuffer(
            b"".join(map(xxh3_128_digest, map(str.encode, part))), dtype="S16"
        )
    return found
