"""How the Triton backend starts a compiled kernel: directly from the second launch on, with the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from triton import knobs

from radam_fused import FusedRAdam
from radam_fused.backends import ops
from radam_fused.backends.triton import tables
from tests.support.fake_launch import Kernel, replacing_driver
from tests.support.helpers import all_same_bits
from tests.support.pointer_path import STEPS, parameters, pointer_calls

__all__ = ["pointer_calls"]

FORMATS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "fp32": (torch.float32, {}),
    "fp64": (torch.float64, {}),
    "bf16": (torch.bfloat16, {"zero_grads": True}),
    "flatten": (torch.float32, {"flatten": True}),
    "int8": (torch.float32, {"state_dtype": torch.int8}),
    "kahan": (torch.bfloat16, {"master_weights": "kahan", "state_dtype": torch.bfloat16}),
    "clip": (torch.float32, {"max_grad_norm": 1.0}),
    "clip-bf16": (torch.bfloat16, {"max_grad_norm": 1.0, "state_dtype": torch.bfloat16}),
    "clip-fp64": (torch.float64, {"max_grad_norm": 1.0}),
    "clip-flatten": (torch.float32, {"max_grad_norm": 1.0, "flatten": True}),
}


@pytest.fixture
def kernels() -> Iterator[dict[str, Kernel]]:
    with replacing_driver() as names:
        yield names


def give_gradients(params: list[nn.Parameter], t: int, new: bool) -> None:
    """The gradients of step t, in new memory or where the last ones were."""
    generator = torch.Generator().manual_seed(t)
    for p in params:
        grad = torch.randn(p.shape, generator=generator).to(p.grad_dtype or p.dtype)
        if p.grad is None or new:
            p.grad = grad
        else:
            p.grad.copy_(grad)


def trained(backend: str, dtype: torch.dtype, options: dict[str, Any], steps: int = STEPS) -> list[Tensor]:
    params = parameters(dtype)
    opt = FusedRAdam(
        [{"params": params[:2], "lr": 0.1}, {"params": params[2:]}], backend=backend, weight_decay=0.1, **options
    )
    for t in range(steps):
        give_gradients(params, t, new=t % 3 == 0 and not options.get("flatten"))
        opt.step()
    return [tensor for p in params for tensor in (p.detach(), p.grad, *opt.state[p].values())]


@pytest.mark.parametrize(("dtype", "options"), FORMATS.values(), ids=list(FORMATS))
def test_a_direct_launch_has_the_bits(
    dtype: torch.dtype, options: dict[str, Any], kernels: dict[str, Kernel], pointer_calls: list[bool]
) -> None:
    ours = trained("triton", dtype, options)
    steps = next(kernel for name, kernel in kernels.items() if "step" in name)
    assert steps.direct >= STEPS - 3
    assert len(steps.signatures) == 1
    assert all(pointer_calls[2:])
    assert all_same_bits(ours, trained("cpu", dtype, options))
    # The negative control: one step less is other bits.
    assert not all_same_bits(ours, trained("cpu", dtype, options, STEPS - 1))


def test_a_norm_reads_the_pointer_table(kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums and scalars take no list of tensors, except where a gradient does not fit the table."""
    lists: list[int] = []
    grad_norm = ops.OPERATORS["triton"].grad_norm
    noted = ops.OPERATORS["triton"]._replace(grad_norm=lambda grads: lists.append(len(grads)) or grad_norm(grads))
    monkeypatch.setitem(ops.OPERATORS, "triton", noted)
    params = [nn.Parameter(torch.ones(n, 3)) for n in (400, 0, 5)]
    opt = FusedRAdam(params, backend="triton", max_grad_norm=1.0)
    expected = [nn.Parameter(torch.ones(n, 3)) for n in (400, 0, 5)]
    other = FusedRAdam(expected, backend="cpu", max_grad_norm=1.0)
    for t in range(STEPS):
        give_gradients(params, t, new=True)
        give_gradients(expected, t, new=True)
        if t == 3:  # the negative control: columns in another order than the parameter's
            for some in (params, expected):
                some[0].grad = some[0].grad.t().contiguous().t()  # type: ignore[union-attr]
        opt.step()
        other.step()
        assert all_same_bits([opt.last_grad_norm, *params], [other.last_grad_norm, *expected])
        assert len(lists) == min(t + 1, 2) + (t >= 3)  # the first two steps have no table yet
    assert kernels["grad_norm_kernel"].direct >= STEPS - 3
    assert kernels["scalars_kernel"].direct >= STEPS - 3


def test_one_compilation_for_a_pair_of_dtypes(kernels: dict[str, Kernel]) -> None:
    """However many tensors and tiles there are, Triton is asked with arguments of the same kinds."""
    for count in (1, 2, 17):
        params = [nn.Parameter(torch.ones(3)) for _ in range(count)]
        opt = FusedRAdam(params, backend="triton")
        for t in range(3):
            give_gradients(params, t, new=True)
            opt.step()
    assert len(kernels["step_kernel"].signatures) == 1


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook", "pre_run_hooks"])
def test_hooks_are_served_by_triton(hook: str, kernels: dict[str, Kernel]) -> None:
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="triton")

    def directly() -> bool:
        before = kernels["step_kernel"].direct
        give_gradients(params, 1, new=False)
        opt.step()
        return kernels["step_kernel"].direct == before + 1

    for t in range(3):
        give_gradients(params, t, new=True)
        opt.step()
    assert directly()
    chain = kernels["step_kernel"].pre_run_hooks if hook == "pre_run_hooks" else getattr(knobs.runtime, hook).calls
    chain.append(lambda *args, **kwargs: None)
    try:
        assert not directly()
    finally:
        chain.pop()
    assert directly()


def uploads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each copy to the device has."""
    seen: list[int] = []
    copy = tables._copy

    def counting(host: Tensor, device: torch.device) -> Tensor:
        seen.append(host.numel())
        return copy(host, device)

    monkeypatch.setattr(tables, "_copy", counting)
    return seen


def test_what_has_not_changed_is_not_uploaded(kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy a step: the scalars alone, and the segments where an address has changed or the stream is another."""
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="triton")
    for t in range(3):
        give_gradients(params, t, new=t == 0)
        opt.step()
    seen = uploads(monkeypatch)
    scalars, segments = 12, 9 * len(params)
    for new in (False, True, False):
        give_gradients(params, 3, new)
        opt.step()
    assert seen == [scalars, scalars + segments, scalars]
    seen.clear()
    monkeypatch.setattr(tables, "_current_stream", lambda device: (1, False))
    opt.step()
    opt.step()
    assert seen == [3, scalars + segments, scalars]  # first the tiles' segments, two to a number


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}], ids=["plain", "clip"])
def test_a_table_that_found_no_memory_is_uploaded_by_the_next_step(
    options: dict[str, Any], kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows have the new addresses then, but what is on the device has the old ones."""
    results = []
    for fails in (False, True):
        params = parameters(torch.float32)
        opt = FusedRAdam(params, backend="triton", **options)
        for t in range(4):
            give_gradients(params, t, new=True)
            if fails and t == 3:
                with monkeypatch.context() as patch:
                    patch.setattr(tables, "host_memory", no_memory)
                    with pytest.raises(torch.OutOfMemoryError):
                        opt.step()
            opt.step()
        results.append([p.detach().clone() for p in params])
    assert all_same_bits(*results)


def no_memory(words: int, device: torch.device) -> Tensor:
    raise torch.OutOfMemoryError("no memory (played)")


def test_a_capture_passes_tensor_lists(
    kernels: dict[str, Kernel], monkeypatch: pytest.MonkeyPatch, pointer_calls: list[bool]
) -> None:
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="triton")
    for t in range(3):
        give_gradients(params, t, new=t == 0)
        opt.step()
    pointer_calls.clear()
    monkeypatch.setattr(tables, "_current_stream", lambda device: (1, True))
    opt.step()
    assert pointer_calls == [False, False]
    assert opt.state[params[0]]["step"] == 4


def test_gradients_of_two_dtypes_pass_tensor_lists(kernels: dict[str, Kernel], pointer_calls: list[bool]) -> None:
    results = []
    for backend in ("triton", "reference"):
        params = parameters(torch.float32)
        params[3].grad_dtype = torch.bfloat16
        opt = FusedRAdam(params, backend=backend)
        for t in range(4):
            give_gradients(params, t, new=True)
            opt.step()
        results.append([p.detach() for p in params])
    assert all_same_bits(*results)
    assert not any(pointer_calls)


def test_freed_state_is_an_error_that_says_so(kernels: dict[str, Kernel]) -> None:
    params = parameters(torch.float32)
    opt = FusedRAdam(params, backend="triton")
    for t in range(3):
        give_gradients(params, t, new=True)
        opt.step()
    before = [p.detach().clone() for p in params]
    opt._bucket_manager.buckets[0].exp_avg.untyped_storage().resize_(0)
    with pytest.raises((RuntimeError, ValueError), match="exp_avg"):
        opt.step()
    assert all_same_bits([p.detach() for p in params], before)
