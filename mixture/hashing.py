"""Keyed hashing of integers by the million."""

import numpy as np
from numpy.typing import NDArray

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


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
