"""Triton's interpreter beside a NumPy that is newer than it: before Triton 3.7, no loop runs with NumPy 2.4.

The interpreter keeps a scalar as an array of one element and one dimension, of which NumPy makes a number no longer.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def mend() -> None:
    """Lets a scalar be the bound of a loop; harmless where it can be already."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patch_and_mend(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    interpreter._patch_lang_tensor = patch_and_mend
