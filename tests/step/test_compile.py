"""A step inside torch.compile: one graph that holds the operators, and the bits of the step outside of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from tests.support.helpers import same_bits

STEPS = 8
EDITED_AT = 4
IMPLEMENTATION = {"cpu": "native", "triton": "triton", "reference": "reference"}


class Graphs:
    """A compiler backend that keeps the graphs it is given, before they are lowered to torch's own operators."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.Graph] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        compiled = aot_eager(module, inputs)
        self.graphs.append(module.graph)
        return compiled

    def operators(self) -> list[str]:
        return [
            node.target.name().partition("::")[2]
            for node in self.graphs[-1].nodes
            if isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "radam_fused"
        ]


class Trained:
    """A small model after `STEPS` steps, all but the first of them compiled or none."""

    def __init__(
        self,
        backend: str,
        compiled: bool,
        edit: Callable[[nn.Sequential, FusedRAdam], None] | None = None,
        lr: float | Tensor | None = None,
        **options: Any,
    ) -> None:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))
        groups = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "weight_decay": 0.1}]
        lr = torch.tensor(1e-2) if lr is None else lr
        optimizer = FusedRAdam(groups, lr, backend=backend, capturable=True, **options)
        self.graphs = Graphs()
        self.norms = []

        def step() -> None:
            optimizer.step()

        compiled_step = torch.compile(step, backend=self.graphs, fullgraph=True) if compiled else step
        for t in range(STEPS):
            torch.manual_seed(t)
            optimizer.zero_grad()
            model(torch.randn(4, 8)).square().mean().backward()
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].mul_(0.95)
                else:
                    group["lr"] *= 0.95
            if t == EDITED_AT and edit is not None:
                edit(model, optimizer)
            (step if t == 0 else compiled_step)()
            self.norms.append(None if optimizer.last_grad_norm is None else optimizer.last_grad_norm.item())
        self.tensors = [
            tensor.detach().clone()
            for p in model.parameters()
            for tensor in (p, *optimizer.state[p].values())
            if isinstance(tensor, Tensor)
        ]

    def same(self, other: Trained) -> bool:
        return all(same_bits(a, b) for a, b in zip(self.tensors, other.tensors, strict=True))


def test_one_graph_with_the_operators(backend: str) -> None:
    """No graph break (fullgraph), one graph whatever the step and the learning rate, and the bits of the eager step."""
    compiled, eager = Trained(backend, True), Trained(backend, False)
    name = IMPLEMENTATION[backend]
    assert compiled.graphs.operators() == [f"scalars_{name}", f"step_{name}"]
    assert len(compiled.graphs.graphs) == 1
    assert compiled.same(eager)


def test_the_comparison_notices_another_run() -> None:
    """The negative control."""
    assert not Trained("cpu", True).same(Trained("cpu", False, weight_decay=0.01))


def test_clipped(backend: str) -> None:
    compiled, eager = (Trained(backend, flag, max_grad_norm=0.5) for flag in (True, False))
    assert compiled.graphs.operators()[0] == f"grad_norm_{IMPLEMENTATION[backend]}"
    assert compiled.same(eager)
    assert compiled.norms == eager.norms
    assert len(set(compiled.norms)) == STEPS


def test_zero_grads() -> None:
    assert Trained("cpu", True, zero_grads=True).same(Trained("cpu", False))


def test_a_float_lr_is_compiled_twice_at_most() -> None:
    """Dynamo takes a number for a constant until it has seen it change once."""
    compiled, eager = (Trained("cpu", flag, lr=1e-2) for flag in (True, False))
    assert len(compiled.graphs.graphs) == 2
    assert compiled.same(eager)


def nothing(model: nn.Sequential, optimizer: FusedRAdam) -> None:
    pass


def reloaded(model: nn.Sequential, optimizer: FusedRAdam) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def entry_replaced(model: nn.Sequential, optimizer: FusedRAdam) -> None:
    optimizer.state[model[0].weight]["exp_avg"] = torch.ones(8, 8)


def entry_written(model: nn.Sequential, optimizer: FusedRAdam) -> None:
    optimizer.state[model[0].weight]["exp_avg"].fill_(2.0)


def state_cleared(model: nn.Sequential, optimizer: FusedRAdam) -> None:
    optimizer.state.clear()


def step_written(model: nn.Sequential, optimizer: FusedRAdam) -> None:
    """Of one parameter among several that had taken the same number of steps."""
    optimizer.state[model[0].weight]["step"].fill_(2.0)


def gradient_missing(model: nn.Sequential, optimizer: FusedRAdam) -> None:
    model[0].bias.grad = None


def gradient_transposed(model: nn.Sequential, optimizer: FusedRAdam) -> None:
    grad = model[0].weight.grad
    assert grad is not None
    model[0].weight.grad = grad.t().contiguous().t()


def frozen(model: nn.Sequential, optimizer: FusedRAdam) -> None:
    model[0].bias.grad = None
    model[0].bias.requires_grad_(False)


def betas_changed(model: nn.Sequential, optimizer: FusedRAdam) -> None:
    optimizer.param_groups[0]["betas"] = (0.8, 0.99)


def strides_changed(model: nn.Sequential, optimizer: FusedRAdam) -> None:
    model[0].weight.data = model[0].weight.data.t().contiguous().t()


EDITS = (
    nothing,
    reloaded,
    entry_replaced,
    entry_written,
    state_cleared,
    step_written,
    gradient_missing,
    gradient_transposed,
    frozen,
    betas_changed,
    strides_changed,
)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("edit", "flatten"),
    [
        pytest.param(edit, flatten, id=f"{edit.__name__}{'-flatten' if flatten else ''}")
        for edit in EDITS
        for flatten in (False, True)
        if not flatten or edit in (nothing, reloaded, gradient_missing)
    ],
)
def test_edits_between_steps(edit: Callable[[nn.Sequential, FusedRAdam], None], flatten: bool) -> None:
    """Whatever is edited between two compiled steps, the next one sees it."""
    compiled, eager = (Trained("cpu", flag, edit, flatten=flatten) for flag in (True, False))
    assert compiled.same(eager)
    if edit in (nothing, entry_written, step_written):
        assert len(compiled.graphs.graphs) == 1


def test_whole_training_step() -> None:
    """Forward, backward and step in one compiled function, with compiled autograd."""

    def train(compiled: bool) -> list[Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
        optimizer = FusedRAdam(model.parameters(), torch.tensor(1e-2), backend="cpu", capturable=True)

        def step(x: Tensor) -> None:
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        chosen = torch.compile(step, backend="aot_eager") if compiled else step
        for t in range(STEPS):
            torch.manual_seed(t)
            chosen(torch.randn(4, 8))
        return [p.detach() for p in model.parameters()]

    with torch._dynamo.config.patch(compiled_autograd=True):
        torch.testing.assert_close(train(True), train(False), rtol=1e-6, atol=1e-7)


def test_complex_parameters_are_refused() -> None:
    p = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    optimizer = FusedRAdam([p], capturable=True)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="complex parameters under"):
        torch.compile(lambda: optimizer.step(), backend="eager", fullgraph=True)()
    assert torch.equal(p.detach(), torch.ones(3, dtype=torch.complex64))


def scaled_step(opt: FusedRAdam, *, compiled: bool) -> list[Tensor]:
    torch._dynamo.reset()
    step = torch.compile(opt.step, backend="aot_eager") if compiled else opt.step
    for scale in (1234.5, 77.7):
        for group in opt.param_groups:
            for k, p in enumerate(group["params"]):
                p.grad = torch.linspace(-1, 3 + k, p.numel()).mul(scale).reshape(p.shape)
        opt.grad_scale, opt.found_inf = torch.tensor(scale), torch.tensor(0.0)
        step()
    params = opt.param_groups[0]["params"]
    return [*params, *(p.grad for p in params)]


@pytest.mark.parametrize("options", [{}, {"zero_grads": True}], ids=["", "zero_grads"])
def test_gradients_of_a_compiled_scaled_step(options: dict[str, Any], backend: str) -> None:
    """As the eager step leaves them: unscaled, or zeros."""
    compiled, eager = (
        scaled_step(
            FusedRAdam([nn.Parameter(torch.ones(300)), nn.Parameter(torch.ones(7))], backend=backend, **options),
            compiled=is_compiled,
        )
        for is_compiled in (True, False)
    )
    assert all(same_bits(a, b) for a, b in zip(compiled, eager, strict=True))
    assert same_bits(eager[2], torch.zeros(300)) == ("zero_grads" in options)
