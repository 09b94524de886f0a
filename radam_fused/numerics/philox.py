"""Random bits for stochastic rounding, the same in every backend: a function of the flat index, the step and a seed.

Must match csrc/numerics/philox.h and `random_bits` of backends/triton/quantization.py bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

PARAM_STREAM, MOMENT_STREAM = 0, 1
"""The streams of random bits: for rounding a parameter, and for rounding its moments."""
RANDS_PER_CALL = 8
"""16-bit random numbers per Philox call, for as many consecutive elements of the flat index space."""
_LOW = 0xFFFFFFFF


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC11): four 32-bit words.

    Args:
        counter: int64 tensors of 32-bit values that broadcast against one another.
        key: the same.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # modulo 2^64, which keeps both halves of the product
        c0, c1, c2, c3 = (
            ((b >> 32) & _LOW) ^ c1 ^ k0,
            b & _LOW,
            ((a >> 32) & _LOW) ^ c3 ^ k1,
            a & _LOW,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def random_bits(start: int, count: int, step: Tensor, seed: Tensor, stream: int) -> Tensor:
    """16 random bits for each of `count` consecutive elements from the flat index `start` on: int64 (count)."""
    first = start // RANDS_PER_CALL
    group = torch.arange(first, -(-(start + count) // RANDS_PER_CALL), dtype=torch.int64, device=step.device)
    zero = torch.zeros_like(group)
    words = philox((group & _LOW, group >> 32, step + zero, stream + zero), (seed, torch.zeros_like(seed)))
    halves = torch.stack([half for word in words for half in (word & 0xFFFF, word >> 16)], dim=1)
    return halves.reshape(-1)[start - first * RANDS_PER_CALL :][:count]


def swap_bytes(rand16: Tensor) -> Tensor:
    """A second 16-bit number from each, by swapping its bytes: its upper bits are the lower bits of the first."""
    return ((rand16 << 8) | (rand16 >> 8)) & 0xFFFF
