"""A tail-biting convolutional code of rate 1/3: 64 bits to 192 signs and back. Knows nothing of images.

Constraint length 7, generators 133, 171, 165 (octal), of maximal free distance (J. P. Odenwalder, 1970; Lin and Costello,
"Error Control Coding", table 12.1). Tail-biting: the encoder begins in the state in which it ends, so no bit is spent on a tail
and every bit is as well protected as any other.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BITS = 64
SIGNS = 3 * BITS

Bits = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

_GENERATORS = (0o133, 0o171, 0o165)
_STATES = 64
_LOOPS = 3  # around the circle: the first finds the state to begin in, the last the one to end in

_STATE = np.arange(_STATES)
_NEWEST = _STATE >> 5  # the bit that led into each state
_EVEN = (_STATE & 31) << 1  # each state's two predecessors
_ODD = _EVEN | 1


def _outputs() -> Floats:
    """The three signs (+1 for a parity of 0) of each state and next bit: 64 x 2 x 3."""
    registers = _STATE[:, None, None] | (np.arange(2)[None, :, None] << 6)
    tapped = registers & np.array(_GENERATORS)[None, None, :]
    ones = sum((tapped >> bit) & 1 for bit in range(7))
    return (1 - 2 * (np.asarray(ones) & 1)).astype(np.float32)


_OUTPUTS = _outputs()
_FROM_EVEN = _OUTPUTS[_EVEN, _NEWEST].T.copy()
_FROM_ODD = _OUTPUTS[_ODD, _NEWEST].T.copy()


def encode(bits: Bits) -> Floats:
    """64 bits to 192 signs, +1 or -1."""
    state = 0
    for bit in bits[-6:]:
        state = (int(bit) << 5) | (state >> 1)
    signs = np.empty((BITS, 3), np.float32)
    for at, bit in enumerate(bits):
        signs[at] = _OUTPUTS[state, int(bit)]
        state = (int(bit) << 5) | (state >> 1)
    return signs.ravel()


def decode(values: Floats) -> Bits:
    """The 64 bits whose signs agree best with 192 soft values (Viterbi's algorithm, three times around)."""
    triples = values.reshape(BITS, 3)
    even, odd = triples @ _FROM_EVEN, triples @ _FROM_ODD
    metric = np.zeros(_STATES, np.float32)
    took_odd = np.empty((BITS * _LOOPS, _STATES), np.bool_)
    for step in range(BITS * _LOOPS):
        by_even = metric[_EVEN] + even[step % BITS]
        by_odd = metric[_ODD] + odd[step % BITS]
        took_odd[step] = by_odd > by_even
        metric = np.maximum(by_even, by_odd)
    state = int(metric.argmax())
    bits = np.empty(BITS * _LOOPS, np.bool_)
    for step in range(BITS * _LOOPS - 1, -1, -1):
        bits[step] = state >> 5
        state = ((state & 31) << 1) | int(took_odd[step, state])
    middle = _LOOPS // 2
    return bits[BITS * middle : BITS * (middle + 1)]
