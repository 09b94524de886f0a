"""The ``reference`` backend's grad_norm: partial sums of squares in plain torch. It never waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor

from ...device import upload
from ...numerics.layout import NORM_RUN, NORM_TILE, PARTIAL_SUMS, is_dense
from ..operator_checks import check_grad_norm


def grad_norm(grads: list[Tensor]) -> Tensor:
    """``radam_fused::grad_norm_reference``; its arguments and result are in `radam_fused.backends.ops`."""
    check_grad_norm(grads)
    device = grads[0].device
    dtype = torch.float64 if grads[0].dtype == torch.float64 else torch.float32
    tiles = torch.cat([torch.zeros(0, NORM_TILE, dtype=dtype, device=device), *(_tiles(grad, dtype) for grad in grads)])
    bounds = torch.arange(PARTIAL_SUMS + 1, dtype=torch.int64, device="cpu") * len(tiles) // PARTIAL_SUMS
    busy = (bounds[1:] > bounds[:-1]).nonzero().squeeze(1)  # the sums that have tiles; computed on the CPU
    begin, end, place = (upload(index, tiles.device) for index in (bounds[busy], bounds[busy + 1], busy))
    lanes = torch.zeros(len(busy), NORM_TILE, dtype=torch.float64, device=device)
    run = torch.zeros_like(lanes, dtype=dtype)
    for k in range(-(-len(tiles) // PARTIAL_SUMS)):
        tile = begin + k
        taken = tiles[tile.clamp(max=len(tiles) - 1)]
        run = torch.where((tile < end)[:, None], run + taken * taken, run)
        if dtype == torch.float32 and k % NORM_RUN == NORM_RUN - 1:
            lanes, run = lanes + run.double(), torch.zeros_like(run)
    lanes += run.double()
    sums = torch.zeros(PARTIAL_SUMS, dtype=torch.float64, device=device).index_copy(0, place, tree_reduce(lanes))
    return sums.unsqueeze(0)


def _tiles(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """A gradient's elements in memory order (row-major where it has gaps), widened, in rows of `NORM_TILE`."""
    grad = grad.detach()
    flat = grad.as_strided((grad.numel(),), (1,)) if is_dense(grad) else grad.reshape(-1)
    return torch.nn.functional.pad(flat.to(dtype), (0, -grad.numel() % NORM_TILE)).reshape(-1, NORM_TILE)


def tree_reduce(values: Tensor) -> Tensor:
    """The sum over the last dimension, a power of two, as a tree: the second half is added to the first, and so on."""
    while (half := values.shape[-1] // 2) > 0:
        values = values[..., :half] + values[..., half:]
    return values[..., 0]
