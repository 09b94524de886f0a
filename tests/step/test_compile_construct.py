"""An optimizer that lives inside a compiled function: made there, stepped, saved, loaded and given another group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    "flatten": {"flatten": True},
    "int8": {"state_dtype": torch.int8},
    "split": {"master_weights": "split"},
    "stochastic": {"rounding": "stochastic"},
    "clipped": {"max_grad_norm": 0.1},
    "capturable": {"capturable": True},
    "zero_grads": {"zero_grads": True},
    "tensor lr": {"lr": torch.tensor(0.1)},
}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    made = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1))
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).view_as(p))
    return made.to(dtype)


def life(make: Callable[..., torch.optim.Optimizer], net: nn.Sequential, x: Tensor) -> list[Tensor]:
    """Made, stepped with and without gradients, saved, loaded, given a group, zeroed."""
    optimizer = make(net[0].parameters())
    for t in range(4):
        optimizer.zero_grad()
        if t != 2:
            net(x).sum().backward()
        optimizer.step()
    optimizer.add_param_group({"params": list(net[2].parameters())})
    optimizer.load_state_dict(optimizer.state_dict())
    for _ in range(3):
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()
    counts = [optimizer.state[p]["step"].clone() for p in net.parameters()]
    return [*counts, *(p.detach() for p in net.parameters())]


@pytest.mark.parametrize("options", OPTIONS)
def test_a_whole_life_inside(options: str) -> None:
    dtype = torch.bfloat16 if options in ("split", "stochastic") else torch.float32
    x = torch.linspace(0, 1, 6).view(3, 2).to(dtype)

    def make(params: Any) -> FusedRAdam:
        return FusedRAdam(params, **{"lr": 0.1, **OPTIONS[options]})

    expected = life(make, model(dtype), x)
    found = torch.compile(lambda net, x: life(make, net, x), backend="eager")(model(dtype), x)
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))
    assert not same_bits(found[-1], list(model(dtype).parameters())[-1].detach())


def test_it_works_wherever_torchs_does() -> None:
    x = torch.linspace(0, 1, 6).view(3, 2)
    for cls in (torch.optim.RAdam, FusedRAdam):
        counts = torch.compile(lambda net, x, cls=cls: life(cls, net, x), backend="eager")(model(), x)[:4]
        assert [count.item() for count in counts] == [6, 6, 3, 3]


def test_made_inside_and_stepped_outside() -> None:
    p, q = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    made = torch.compile(lambda p: FusedRAdam([p], lr=0.1), backend="eager")(p)
    other = FusedRAdam([q], lr=0.1)
    for _ in range(3):
        for one in (p, q):
            one.grad = torch.ones(5)
        made.step()
        other.step()
    assert same_bits(p.detach(), q.detach())


def test_an_error_inside_is_the_one_outside() -> None:
    def make(p: Tensor) -> FusedRAdam:
        return FusedRAdam([p], lr=-1.0)

    for call in (make, torch.compile(make, backend="eager")):
        with pytest.raises(ValueError, match=r"lr = -1\.0: must be finite and at least 0"):
            call(torch.ones(3))


def test_the_constructor_shows_its_signature() -> None:
    names = list(inspect.signature(FusedRAdam).parameters)
    assert names[:7] == ["params", "lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "maximize"]
