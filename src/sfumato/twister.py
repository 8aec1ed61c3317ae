"""The Mersenne Twister of torch's CPU generators: its state, and jumps to numbers far ahead without those in between.

The words that it gives follow a linear recurrence over bits. With p = t^n modulo the recurrence's characteristic
polynomial, word k + n is the exclusive or of the words k + j over the powers j of p (Haramoto et al. 2008, section 3).
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

N, M, BITS, LOWER = 624, 397, 32, 31
"""Words of the state, the distance of the recurrence, bits of a word, and those of its lower part (Matsumoto and
Nishimura 1998, Table II: n, m, w, r)."""
TWIST = 0x9908B0DF
DEGREE = N * BITS - LOWER
WORDS = slice(3, 3 + N)
"""The words in torch's state of a generator, in units of 8 bytes: after the seed, two flags in one unit and the index
of the next word."""
FLAGS, NEXT = 1, 2
FAR = 1_300_000
"""From this many words on a jump takes less time than to go through them: 4.5 ms where a word takes 3.4 ns."""


def seeded_state(words: NDArray[np.uint32]) -> Tensor:
    """The state (bytes) of a CPU generator with these words, before its first number."""
    state = torch.Generator().manual_seed(0).get_state()
    state.numpy().view(np.uint64)[WORDS] = words
    return state


def skip(generator: torch.Generator, words: int) -> None:
    """Moves a CPU generator on by a number of 32-bit words, as if they had been drawn; a float32 number takes one."""
    if words == 0:
        return
    state = generator.get_state()
    fields = state.numpy().view(np.uint64)
    unread = int(fields[FLAGS] & 0xFFFFFFFF) - 1  # the flag counts one more than the words that are left in the block
    twister = np.random.MT19937()
    key = fields[WORDS].astype(np.uint32)
    twister.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": int(fields[NEXT]) if unread else N}}
    if words < FAR:
        twister.random_raw(words, output=False)
        key, position = twister.state["state"]["key"], int(twister.state["state"]["pos"])
    else:
        key, position = _words_at(twister, words - 1), 1  # torch has no state of a block from which nothing was read
    fields[WORDS] = key
    fields[NEXT] = position
    fields[FLAGS] = (fields[FLAGS] & ~np.uint64(0xFFFFFFFF)) | np.uint64(N + 1 - position)
    generator.set_state(state)


def _words_at(twister: np.random.MT19937, ahead: int) -> NDArray[np.uint32]:
    """The N words of the recurrence of which the first gives the number `ahead` numbers after the next."""
    given = twister.random_raw(DEGREE + N - 1).astype(np.uint32)
    windows = np.lib.stride_tricks.sliding_window_view(given, N)
    return _untempered(np.bitwise_xor.reduce(windows[_powers(ahead)], axis=0))


@lru_cache(maxsize=64)
def _powers(ahead: int) -> NDArray[np.int64]:
    """The powers of t in t^ahead modulo the characteristic polynomial."""
    return _set_bits(_reduced_power(ahead))


def _set_bits(polynomial: int) -> NDArray[np.int64]:
    packed = np.frombuffer(polynomial.to_bytes(polynomial.bit_length() // 8 + 1, "little"), np.uint8)
    return np.flatnonzero(np.unpackbits(packed, bitorder="little"))


def _reduced_power(exponent: int) -> int:
    """t^exponent modulo the characteristic polynomial, bit j the coefficient of t^j."""
    power = 1
    for bit in bin(exponent)[2:]:
        power = int(bin(power)[2:], 4)  # the square: over bits its coefficients are those of the root, at even powers
        power = _reduced(power << 1 if bit == "1" else power)
    return power


def _reduced(polynomial: int) -> int:
    """The remainder by the characteristic polynomial."""
    below = [int(power) for power in _set_bits(characteristic()) if power < DEGREE]
    while (high := polynomial >> DEGREE) != 0:
        polynomial &= (1 << DEGREE) - 1
        for power in below:
            polynomial ^= high << power
    return polynomial


@lru_cache(maxsize=1)
def characteristic() -> int:
    """The characteristic polynomial of the recurrence, of degree 19937, bit j the coefficient of t^j.

    With u = t^n + t^m, v = t^(n-1) + t^(m-1) and the bits a of the twist: the sum of a_i u^(w-r) v^(r-1-i) over i < r,
    of a_i u^(w-1-i) over i >= r, and of u^(w-r) v^r (Matsumoto and Nishimura 1998, appendix A.1).
    """
    u, v = _powers_of(N, M, BITS - LOWER), _powers_of(N - 1, M - 1, LOWER)
    total = _product(u[BITS - LOWER], v[LOWER])
    for i in range(BITS):
        if TWIST >> i & 1:
            total ^= _product(u[BITS - LOWER], v[LOWER - 1 - i]) if i < LOWER else u[BITS - 1 - i]
    return total


def _powers_of(high: int, low: int, most: int) -> list[int]:
    """(t^high + t^low)^k for k = 0 … most."""
    powers = [1]
    for _ in range(most):
        powers.append((powers[-1] << high) ^ (powers[-1] << low))
    return powers


def _product(left: int, right: int) -> int:
    product = 0
    for power in _set_bits(left):
        product ^= right << int(power)
    return product


def _untempered(numbers: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The words of the recurrence that give these numbers: the tempering (1998, equations 2.2 to 2.5) backwards."""
    y = numbers ^ (numbers >> np.uint32(18))
    y ^= (y << np.uint32(15)) & np.uint32(0xEFC60000)
    masked, x = np.uint32(0x9D2C5680), y
    for _ in range(4):
        x = y ^ ((x << np.uint32(7)) & masked)
    y = x
    for _ in range(2):
        x = y ^ (x >> np.uint32(11))
    return x
