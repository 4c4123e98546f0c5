"""A random order that is never stored: where each row goes is computed from a key and the row's number alone."""

from __future__ import annotations

import numpy as np

ROUNDS = 8
BLOCK = 1 << 15  # neighbours that stay neighbours of a buffer: 128 KiB of a column of codes, as much as systems read at once
_GOLDEN = 0x9E3779B97F4A7C15
_HALF = np.uint64(32)


def key_of(*parts: int | np.ndarray) -> np.ndarray:
    """A 64-bit key that changes all over when any of its parts changes.

    Args:
        parts: integers, or integer arrays that broadcast together.

    Returns:
        uint64, of the parts' common shape (at least one-dimensional).
    """
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = _mix((key ^ np.atleast_1d(np.asarray(part)).astype(np.uint64)) + np.uint64(_GOLDEN))
    return key


def permute(index: np.ndarray, size: np.ndarray | int, key: np.ndarray) -> np.ndarray:
    """Maps 0 .. size - 1 onto itself, one to one, in an order given by the key.

    A generalised Feistel network on Z_a x Z_b with a * b just above ``size``, walked until it lands below it
    (Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002).

    Args:
        index: (B,) integers from 0 to size - 1.
        size: below 2**62; a number, or one per index.
        key: uint64, one for all or one per index (see ``key_of``).

    Returns:
        (B,) int64.
    """
    shape = np.shape(index)
    out = np.asarray(index, np.uint64)
    whole, keys = np.broadcast_to(np.asarray(size, np.uint64), shape), np.broadcast_to(key, shape)
    wide = np.ceil(np.sqrt(whole)).astype(np.uint64)
    high = (whole + wide - np.uint64(1)) // wide
    out = _network(out, wide, high, keys)
    while (outside := np.flatnonzero(out >= whole)).size:
        out[outside] = _network(out[outside], wide[outside], high[outside], keys[outside])
    return out.astype(np.int64)


def permute_nearby(index: np.ndarray, size: np.ndarray, key: np.ndarray, buffer: np.ndarray) -> np.ndarray:
    """Like ``permute``, but the rows of neighbouring places lie in few blocks, so that a file larger than memory is read piece after piece.

    Blocks of rows are permuted, and then, as many blocks as a buffer holds, the rows of those.  What is left over from whole blocks is
    permuted by itself; where the blocks begin depends on the key.

    Args:
        index: (B,) integers from 0 to size - 1.
        size: (B,) below 2**62, positive.
        key: (B,) uint64.
        buffer: (B,) rows of a buffer; at least one block is.

    Returns:
        (B,) int64.
    """
    out, whole = np.empty(len(index), np.int64), size // BLOCK * BLOCK
    rest = np.flatnonzero(index >= whole)
    out[rest] = whole[rest] + permute(index[rest] - whole[rest], (size - whole)[rest], key[rest])
    some = np.flatnonzero(index < whole)
    blocks, held, keys = whole[some] // BLOCK, np.maximum(buffer[some] // BLOCK, 1) * BLOCK, key[some]
    number, place = np.divmod(index[some], held)
    place = permute(place, np.minimum(held, whole[some] - number * held), key_of(keys, number))
    block, offset = np.divmod(number * held + place, BLOCK)
    out[some] = permute(block, blocks, keys) * BLOCK + offset
    return (out + (key % size.astype(np.uint64)).astype(np.int64)) % size


def _network(index: np.ndarray, wide: np.ndarray, high: np.ndarray, key: np.ndarray) -> np.ndarray:
    """One pass of the network: the two digits of an index are shifted by a hash of one another in turn."""
    (row, column), sizes = np.divmod(index, wide), (wide, high)
    moved, other = column, row
    for number in range(ROUNDS):
        size = sizes[number % 2]
        key = key + np.uint64(_GOLDEN)
        moved = moved + ((_mix(other ^ key) >> _HALF) * size >> _HALF)  # the hash, scaled to 0 .. size - 1
        moved = np.where(moved >= size, moved - size, moved)
        moved, other = other, moved
    column, row = moved, other
    return row * wide + column


def _mix(value: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of 64-bit numbers in which every bit depends on every bit."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
