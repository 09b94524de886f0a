"""What `step_in_backward` refuses, at once or where it can be known at last."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam, step_in_backward
from tests.support.small_models import backward, chain

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "max_grad_norm": ({"max_grad_norm": 1.0}, r"max_grad_norm = 1\.0.*Clip each gradient"),
    "flatten": ({"flatten": True}, "flatten = True.*Choose one"),
    "differentiable": (
        {"differentiable": True, "backend": "reference"},
        r"param_groups\[0\]: differentiable = True.*Step after the backward pass",
    ),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_options_that_need_all_gradients_are_refused(options: dict[str, Any], message: str) -> None:
    net = chain(1)
    opt = FusedRAdam(net.parameters(), **options)
    with pytest.raises(ValueError, match=message):
        step_in_backward(opt)
    backward(net)
    assert net[0].weight.grad is not None
    assert not any(entry["step"] for entry in opt.state.values())


@pytest.mark.parametrize(
    ("accumulate", "error"), [(0, ValueError), (-1, ValueError), (2.0, TypeError), (True, TypeError), (None, TypeError)]
)
def test_accumulate_is_a_number_of_passes(accumulate: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"accumulate = {accumulate}"):
        step_in_backward(FusedRAdam(chain(1).parameters()), accumulate=accumulate)


def test_another_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="is a SGD: must be a FusedRAdam"):
        step_in_backward(torch.optim.SGD(chain(1).parameters()))  # type: ignore[arg-type]


def test_twice_is_refused() -> None:
    opt = FusedRAdam(chain(1).parameters())
    handle = step_in_backward(opt)
    with pytest.raises(RuntimeError, match=r"already.*remove\(\)"):
        step_in_backward(opt)
    handle.remove()
    step_in_backward(opt)


def test_two_optimizers_on_one_parameter_are_an_error() -> None:
    net = chain(1)
    opts = [FusedRAdam(net.parameters(), backend="reference") for _ in range(2)]
    for opt in opts:
        step_in_backward(opt)
    with pytest.raises(RuntimeError, match=r"param_groups\[0\]\['params'\]\[\d\] has no gradient any more"):
        backward(net)


@pytest.mark.parametrize("unscaled", [False, True], ids=["scaled", "unscaled"])
def test_grad_scaler_is_an_error(unscaled: bool) -> None:
    net = chain(1)
    opt = FusedRAdam(net.parameters(), backend="reference")
    handle = step_in_backward(opt)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(net(torch.ones(2, 4)).sum()).backward()
    if unscaled:
        scaler.unscale_(opt)
    with pytest.raises(RuntimeError, match=r"GradScaler.*bfloat16"):
        scaler.step(opt)
    handle.remove()
    backward(net)
    opt.step()  # without the scale that it was given before


def test_disabled_grad_scaler_is_none() -> None:
    net = chain(1)
    opt = FusedRAdam(net.parameters(), backend="reference")
    step_in_backward(opt)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    scaler.scale(net(torch.ones(2, 4)).sum()).backward()
    scaler.step(opt)
    assert {int(entry["step"]) for entry in opt.state.values()} == {1}


def test_compiled_step_is_refused() -> None:
    torch._dynamo.reset()  # past a number of recompilations, of whatever tests came before, it compiles no more
    net = chain(1)
    opt = FusedRAdam(net.parameters(), backend="reference")
    compiled = torch.compile(opt.step, backend="eager")
    backward(net)
    compiled()  # the negative control: without step_in_backward it runs
    opt.zero_grad()
    step_in_backward(opt)
    backward(net)
    with pytest.raises(Exception, match=r"torch\.compile: step\(\) under step_in_backward"):
        compiled()


def test_new_group_that_cannot_be_stepped_in_backward_is_refused() -> None:
    net = chain(1)
    opt = FusedRAdam(net.parameters(), backend="reference")
    step_in_backward(opt)
    with pytest.raises(ValueError, match="differentiable"):
        opt.add_param_group({"params": [nn.Parameter(torch.ones(3))], "differentiable": True})
    backward(net)
    assert net[0].weight.grad is None
    opt.step()
    assert len(opt.param_groups) == 1


@pytest.fixture
def _process_group() -> Any:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("torch was built without gloo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("view", [False, True], ids=["copies", "views"])
def test_averages_that_come_after_the_step_are_an_error(view: bool) -> None:
    """DistributedDataParallel averages gradients once hooks have run: stepping by one process's own would be wrong."""
    net = chain(2)
    opt = FusedRAdam(net.parameters(), backend="reference")
    step_in_backward(opt)
    wrapped = nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=view)
    wrapped(torch.ones(2, 4)).square().mean().backward()
    with pytest.raises(RuntimeError, match="DistributedDataParallel"):
        opt.step()


def test_gradient_written_after_the_step_is_an_error() -> None:
    net = chain(2)
    opt = FusedRAdam(net.named_parameters(), backend="reference")
    step_in_backward(opt)
    backward(net)
    net[1].bias.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match=r"'1\.bias' has been stepped in backward.*DistributedDataParallel"):
        opt.step()
