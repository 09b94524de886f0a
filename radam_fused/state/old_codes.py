"""8-bit moments as earlier versions stored them, which checkpoints may still hold: decoded, and never written."""

from __future__ import annotations

import torch
from torch import Tensor


def decode(code: Tensor, sq_code: Tensor, scale: Tensor, sq_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The first moment m, and sqrt(v): v's code was linear in its fourth root, m's in m / sqrt(v).

    Args:
        code: the codes of m, as float32.
        sq_code: those of v.
        scale: the scale of each code of m.
        sq_scale: that of each code of v.
    """
    fraction = sq_code * torch.tensor(1.0 / 255.0, dtype=torch.float32, device="cpu")
    root = sq_scale * (fraction * fraction)
    return code * torch.tensor(1.0 / 127.0, dtype=torch.float32, device="cpu") * scale * root, root
