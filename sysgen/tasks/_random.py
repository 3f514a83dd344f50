"""SplitMix64 (Steele, Lea & Flood, OOPSLA 2014): one stream, drawn from Python integers, torch tensors or the core.

Number ``i`` of the stream with key ``k`` is ``mix(k + (i + 1) · γ)`` modulo 2^64, so that any part of it can be drawn
without what precedes it. This definition never changes: the data sets of a seed depend on it.
"""

import torch

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_M1, _M2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(z):
    """The output function of SplitMix64: a bijection of the 64-bit integers."""
    z = ((z ^ (z >> 30)) * _M1) & _MASK
    z = ((z ^ (z >> 27)) * _M2) & _MASK
    return z ^ (z >> 31)


def key_of(seed, *labels):
    """Key of the stream for a purpose: ``labels`` are strings and integers, e.g. ``key_of(seed, "ctl", "tables")``."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an int, got {type(seed).__name__}")
    if not 0 <= seed <= _MASK:
        raise ValueError(f"seed must be in [0, 2^64), got {seed}")
    key = mix((seed + _GAMMA) & _MASK)
    for label in labels:
        value = label & _MASK if isinstance(label, int) else _fnv1a(label.encode())
        key = mix(((key ^ value) + _GAMMA) & _MASK)
    return key


def _fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text:
        value = ((value ^ byte) * 0x100000001B3) & _MASK
    return value


class Stream:
    """The numbers of a key one after the other."""

    def __init__(self, key):
        self.state = key

    def next(self):
        self.state = (self.state + _GAMMA) & _MASK
        return mix(self.state)

    def below(self, n):
        """Uniform integer in [0, n), n ≤ 2^32; the bias is below n / 2^32."""
        return ((self.next() >> 32) * n) >> 32

    def uniform(self):
        """Uniform float in [0, 1), a multiple of 2^-53."""
        return (self.next() >> 11) / (1 << 53)

    def permutation(self, n):
        order = list(range(n))
        for i in range(n - 1, 0, -1):
            j = self.below(i + 1)
            order[i], order[j] = order[j], order[i]
        return order


def _signed(value):
    return value - (1 << 64) if value >> 63 else value


def _shift(z, n):
    """Logical shift: that of int64 tensors is arithmetic."""
    return (z >> n) & ((1 << (64 - n)) - 1)


def mix_tensor(z):
    """:func:`mix` of the bits of an int64 tensor."""
    z = (z ^ _shift(z, 30)) * _signed(_M1)
    z = (z ^ _shift(z, 27)) * _signed(_M2)
    return z ^ _shift(z, 31)


def draw(key, counters):
    """The numbers ``counters`` (int64 tensor) of stream ``key``; int64, the bits of the unsigned ones."""
    return mix_tensor((counters + 1) * _signed(_GAMMA) + _signed(key))


def below(bits, n):
    """Numbers in [0, n) from :func:`draw`, as :meth:`Stream.below`; ``n`` < 2^31, an int or an int64 tensor."""
    return (_shift(bits, 32) * n) >> 32


def permutation(key, n):
    """Random order of n, LongTensor [n]."""
    return draw(key, torch.arange(n)).argsort(stable=True)


def hash_rows(columns):
    """64-bit hash of each row of an int64 matrix [M, W]."""
    value = torch.zeros(len(columns), dtype=torch.int64)
    for column in columns.unbind(1):
        value = mix_tensor((value ^ column) + _signed(_GAMMA))
    return value
