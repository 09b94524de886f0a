"""The operators of the triton backend and of reference, side by side."""

from __future__ import annotations

from radam_fused.backends.ops import OPERATORS

TRITON, REFERENCE = OPERATORS["triton"], OPERATORS["reference"]
