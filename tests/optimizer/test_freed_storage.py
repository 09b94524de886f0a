"""A parameter or gradient whose storage was freed or shrunk: an error that names it, and nothing is written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from radam_fused import FusedRAdam, step_in_backward
from tests.support.helpers import same_bits

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "reference": {"backend": "reference"},
    "clipped": {"max_grad_norm": 1.0},
    "capturable": {"capturable": True},
    "int8": {"state_dtype": torch.int8},
    "zero_grads": {"zero_grads": True},
    "offload": {"offload": True},
}


@pytest.mark.parametrize("buckets", [1, 2])
@pytest.mark.parametrize("size", [0, 64], ids=["freed", "shrunk"])
@pytest.mark.parametrize("offset", [0, 4096])
@pytest.mark.parametrize("what", ["parameter", "gradient"])
@pytest.mark.parametrize("options", OPTIONS)
def test_an_error_names_it(options: str, what: str, offset: int, size: int, buckets: int) -> None:
    q, p = torch.zeros(16), torch.zeros(offset + 4096)[offset:]
    params: list[Tensor] = [q, p]
    if buckets == 2 and options != "int8":
        params.append(torch.zeros(3, dtype=torch.float64))
    optimizer = FusedRAdam(params, lr=0.1, **OPTIONS[options])

    def give() -> None:
        for one in params:
            one.grad = torch.ones(offset + one.numel(), dtype=one.dtype)[offset:]

    for _ in range(2):
        give()
        optimizer.step()
    give()
    before = [one.clone() for one in params]
    victim = p if what == "parameter" else p.grad
    assert victim is not None
    victim.untyped_storage().resize_(size)
    name = r"param_groups\[0\]\['params'\]\[1\] of shape \(4096,\): its storage has"
    for _ in range(2):
        with pytest.raises(ValueError, match=name if what == "parameter" else f"gradient of {name}"):
            optimizer.step()
    if what == "gradient":
        assert all(same_bits(a, b) for a, b in zip(params, before, strict=True))
        give()
        optimizer.step()
    else:
        assert same_bits(q, before[0])
        p.data = before[1]
        optimizer.step()
    assert [float(optimizer.state[one]["step"]) for one in params] == [3.0] * len(params)


@pytest.mark.parametrize("what", ["parameter", "gradient"])
def test_under_flatten_nothing_is_freed_without_an_error(what: str) -> None:
    """The views have storages of their own over the flat buffer, which torch does not resize."""
    p = torch.nn.Parameter(torch.zeros(4096))
    optimizer = FusedRAdam([p, torch.nn.Parameter(torch.zeros(3))], flatten=True)
    optimizer.step()
    victim = p if what == "parameter" else p.grad
    assert victim is not None
    with pytest.raises(RuntimeError, match="not resizable"):
        victim.untyped_storage().resize_(0)
    optimizer.step()
    p.grad = torch.ones(4096)
    p.grad.untyped_storage().resize_(0)
    with pytest.raises((ValueError, RuntimeError), match=r"param_groups\[0\]\['params'\]\[0\]"):
        optimizer.step()


def test_in_backward() -> None:
    p = torch.nn.Parameter(torch.zeros(8))
    optimizer = FusedRAdam([p])

    def free(one: Tensor) -> None:
        assert one.grad is not None
        one.grad.untyped_storage().resize_(0)

    p.register_post_accumulate_grad_hook(free)
    step_in_backward(optimizer)
    with pytest.raises(
        ValueError, match=r"gradient of param_groups\[0\]\['params'\]\[0\] of shape \(8,\): its storage"
    ):
        p.sum().backward()
