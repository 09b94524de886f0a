"""What a step on the GPU takes from there: grad_norm, scalars, skipped steps, cleared gradients; and all in a graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bench.gpu import traces
from radam_fused.backends.ops import OPERATORS
from radam_fused.backends.triton import tables as triton_tables
from radam_fused.numerics.layout import layout_hash
from radam_fused.rectification import KINDS
from tests.gpu import on_gpu
from tests.kernels import test_grad_norm as grad_norm
from tests.kernels import test_scalars_operator as scalars_operator
from tests.kernels.test_bits import PAIRS, SHORT
from tests.kernels.test_zero_grads import ZERO
from tests.kernels.test_zero_grads import Problem as StepProblem
from tests.kernels.test_zero_grads import assert_same as assert_same_step
from tests.support.cuda_host import same_layout
from tests.support.helpers import same_bits

DTYPE = pytest.mark.parametrize("dtype", SHORT, ids=list(SHORT.values()))
PAIR = pytest.mark.parametrize(("dtype", "grad_dtype"), PAIRS, ids=[f"{SHORT[p]}-grad_{SHORT[g]}" for p, g in PAIRS])
OPTION = pytest.mark.parametrize("options", scalars_operator.OPTIONS.values(), ids=list(scalars_operator.OPTIONS))
REFERENCE = OPERATORS["reference"]


def there(value: Any) -> Any:
    """A tensor, with its strides and misalignment, or a list of them, on the GPU; anything else as it is."""
    if isinstance(value, list):
        return [there(item) for item in value]
    return same_layout(value, "cuda") if isinstance(value, Tensor) else value


@DTYPE
@grad_norm.CASE
def test_grad_norm(case: Any, dtype: torch.dtype, backend: str) -> None:
    grads = case(dtype)
    assert same_bits(OPERATORS[backend].grad_norm(there(grads)).cpu(), REFERENCE.grad_norm(grads))


@DTYPE
def test_grad_norm_of_many_tiles(dtype: torch.dtype, backend: str) -> None:
    """More tiles to a sum than are added in float32."""
    grads = [grad_norm.values(n, dtype) for n in grad_norm.RUNS]
    assert same_bits(OPERATORS[backend].grad_norm(there(grads)).cpu(), REFERENCE.grad_norm(grads))


@DTYPE
def test_grad_norm_by_reference_on_the_gpu(dtype: torch.dtype) -> None:
    for case in grad_norm.CASES.values():
        grads = case(dtype)
        assert same_bits(REFERENCE.grad_norm(there(grads)).cpu(), REFERENCE.grad_norm(grads))


@pytest.mark.parametrize("tensors", [300, 6000], ids=["by_value", "in_a_table"])
def test_squares_follow_their_gradients(tensors: int, backend: str) -> None:
    """The same lengths at other addresses, then other lengths: no table is taken for another."""
    values = torch.randn(tensors, 130, generator=torch.Generator().manual_seed(0))
    for grads in (values, values * 3.0, values[:, :77].contiguous(), -values[:, 1:], values):
        moved = list(grads.cuda().unbind())
        assert same_bits(OPERATORS[backend].grad_norm(moved).cpu(), REFERENCE.grad_norm(list(grads.unbind())))
        torch.cuda.synchronize()
        for grad in moved:
            grad.fill_(float("nan"))


def test_one_element_is_noticed(backend: str) -> None:
    """The negative control: the last element of the last tile."""
    grads = grad_norm.CASES["more_tiles_than_sums"](torch.float32)
    moved = there(grads)
    moved[0][-1] += 1.0
    assert not same_bits(OPERATORS[backend].grad_norm(moved).cpu(), REFERENCE.grad_norm(grads))


@pytest.mark.parametrize("kind", KINDS)
@OPTION
def test_scalars(options: dict, kind: str, backend: str) -> None:
    problem = scalars_operator.Problem(kind, **options)

    def on_the_gpu(*arguments: Any) -> tuple[Tensor, Tensor]:
        moved = [there(value) for value in arguments]
        rows, norm = OPERATORS[backend].scalars(*moved)
        arguments[3].copy_(moved[3])
        return rows.cpu(), norm.cpu()

    scalars_operator.assert_same(problem.made_by(on_the_gpu), problem.made_by(REFERENCE.scalars))


@pytest.mark.parametrize("count", [1, 465, 20_000])
def test_any_number_of_rows(count: int, backend: str) -> None:
    problem = scalars_operator.Problem()
    problem.taken = torch.arange(count, dtype=torch.float32) % 97
    problem.counted = (torch.arange(count) % 3 != 1).float()
    problem.pairs = torch.stack([torch.arange(count) % 9, (torch.arange(count) * 7 + 3) % count], dim=1)
    here, gpu = problem.arguments(), [there(value) for value in problem.arguments()]
    assert same_bits(OPERATORS[backend].scalars(*gpu)[0].cpu(), REFERENCE.scalars(*here)[0])
    assert same_bits(gpu[3].cpu(), here[3])


def stepped(problem: StepProblem, backend: str, clear: bool, rows_on_gpu: bool) -> dict[str, list[Tensor]]:
    """`StepProblem.after` on the GPU."""

    def step(
        params: list,
        grads: list,
        m: Tensor,
        v: Tensor,
        segments: Tensor,
        scalar_index: Tensor,
        rows: Tensor,
        clear: bool,
    ):
        moved = [there(params), there(grads), m.cuda(), v.cuda()]
        OPERATORS[backend].step(*moved, segments, scalar_index, rows.cuda() if rows_on_gpu else rows, clear)
        m.copy_(moved[2])
        v.copy_(moved[3])
        for old, new in zip([*params, *grads], [*moved[0], *moved[1]], strict=True):
            old.untyped_storage().copy_(new.untyped_storage())

    return problem.after(step, clear)


@pytest.mark.parametrize("rows_on_gpu", [False, True], ids=["rows_from_host", "rows_on_gpu"])
@ZERO
@PAIR
def test_cleared_and_skipped(
    dtype: torch.dtype, grad_dtype: torch.dtype, zero_grads: bool, rows_on_gpu: bool, backend: str
) -> None:
    problem = StepProblem(dtype, grad_dtype)
    ours = stepped(problem, backend, zero_grads, rows_on_gpu)
    assert_same_step(ours, problem.after(REFERENCE.step, zero_grads))


def test_a_gradient_that_is_kept_is_noticed(backend: str) -> None:
    """The negative control."""
    problem = StepProblem(torch.float32, torch.float32)
    ours = stepped(problem, backend, False, True)
    with pytest.raises(AssertionError, match="grads"):
        assert_same_step(ours, problem.after(REFERENCE.step, True))


class Training:
    """Steps whose every scalar is computed on the GPU: grad_norm, scalars, and the update that clears its gradients."""

    def __init__(self, backend: str, device: str, tensors: int = 40) -> None:
        self.operators = OPERATORS[backend]
        problem = scalars_operator.Problem("exact")
        values = torch.randn(2, tensors, 1000, generator=torch.Generator().manual_seed(0))
        self.params, self.fresh = ([t.to(device, copy=True) for t in part.unbind()] for part in values)
        self.grads = [torch.zeros_like(p) for p in self.params]
        self.moments = [torch.zeros(tensors * 1024, device=device) for _ in range(2)]
        starts = [1024 * k for k in range(tensors)]
        layouts = [layout_hash(p.shape, p.stride()) for p in self.params]
        self.segments = torch.tensor([*zip(starts, layouts, strict=True)])
        self.scalar_index = torch.arange(tensors) % len(problem.group_scalars)
        self.group_scalars = problem.group_scalars.to(device)
        self.pairs = torch.tensor([(k, k) for k in range(len(problem.group_scalars))], device=device)
        self.counted, self.steps = torch.ones(tensors, device=device), torch.zeros(tensors, device=device)
        self.taken = self.steps.double()
        self.lr = torch.tensor(0.01, device=device)
        self.scale, self.found_inf = (torch.full((1,), value, device=device) for value in (4.0, 0.0))
        self.norm = torch.zeros((), dtype=torch.float64, device=device)

    def step(self) -> None:
        sums = self.operators.grad_norm(self.grads)
        lr = self.lr.expand(len(self.group_scalars))
        scalars = (lr, sums, 0.5, self.scale, self.found_inf)
        rows, norm = self.operators.scalars(
            self.group_scalars, self.pairs, self.counted, self.steps, self.taken, *scalars
        )
        self.norm.copy_(norm)
        self.operators.step(self.params, self.grads, *self.moments, self.segments, self.scalar_index, rows, True)

    def backward(self, k: int) -> None:
        """New gradients, in the old memory, another learning rate, and in the fourth step an overflow."""
        for grad, fresh in zip(self.grads, self.fresh, strict=True):
            grad.add_(fresh, alpha=1.0 + k)  # to what the step before has left there: zeros
        self.lr.fill_(0.01 / (k + 1))
        self.found_inf.fill_(float(k == 3))

    def state(self) -> list[Tensor]:
        return [t.cpu() for t in (*self.params, *self.grads, *self.moments, self.steps, self.norm)]


@pytest.fixture(scope="module")
def trained() -> list[Tensor]:
    """Eight steps by ``reference`` on the CPU."""
    training = Training("reference", "cpu")
    for k in range(8):
        training.backward(k)
        training.step()
    assert training.steps.unique().tolist() == [7.0]
    return training.state()


def test_trains_without_a_graph(backend: str, trained: list[Tensor]) -> None:
    training = Training(backend, "cuda")
    for k in range(8):
        training.backward(k)
        training.step()
    assert all(same_bits(a, b) for a, b in zip(training.state(), trained, strict=True))


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_trains_in_a_graph(warm: bool, backend: str, trained: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Captured once, replayed with other gradients, learning rates and found_inf: the graph holds no scalar."""
    if backend == "triton" and not warm:
        pytest.skip("Triton compiles at the first launch, which no capture allows")
    training = Training(backend, "cuda")
    first = 0
    if warm:
        training.backward(0)
        training.step()
        first = 1
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.step()
    monkeypatch.setattr(triton_tables, "KEPT", 8)
    for k in range(on_gpu.ENTRIES + 1 if backend == "cuda" else 20):  # other launches, more than tables are kept for
        Training(backend, "cuda", tensors=10 + k % 40).step()
    scratch = [torch.full((1000,), -1.0, device="cuda") for _ in range(50)]  # where freed memory would be
    for k in range(first, 8):
        training.backward(k)
        graph.replay()
    torch.cuda.synchronize()
    del scratch
    assert all(same_bits(a, b) for a, b in zip(training.state(), trained, strict=True))


def test_a_step_too_few_is_noticed(backend: str, trained: list[Tensor]) -> None:
    """The negative control."""
    training = Training(backend, "cuda")
    for k in range(7):
        training.backward(k)
        training.step()
    assert not all(same_bits(a, b) for a, b in zip(training.state(), trained, strict=True))


def test_launches(backend: str) -> None:
    """One each of grad_norm, scalars and step; nothing is copied to the GPU while the gradients stay where they are."""
    if backend != "cuda":
        pytest.skip("the number of launches is the cuda backend's promise")
    training = Training(backend, "cuda")
    for k in range(3):
        training.backward(k)
        training.step()
    sums = training.operators.grad_norm(training.grads)
    scalars = (training.lr.expand(len(training.group_scalars)), sums, 0.5, None, None)
    arguments = (training.group_scalars, training.pairs, training.counted, training.steps, training.taken, *scalars)
    rows, _ = training.operators.scalars(*arguments)
    where = (*training.moments, training.segments, training.scalar_index)
    for call in (
        lambda: training.operators.grad_norm(training.grads),
        lambda: training.operators.scalars(*arguments),
        lambda: training.operators.step(training.params, training.grads, *where, rows, True),
    ):
        trace = traces.record(call)
        assert len(trace.kernels) == 1, trace.kernels
        assert len(trace.copies) == 0, trace.copies


def test_nothing_waits_for_the_gpu(backend: str) -> None:
    training = Training(backend, "cuda")
    for k in range(3):
        training.backward(k)
        training.step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    done = torch.cuda.Event()
    torch.cuda._sleep(1_600_000_000)
    for _ in range(3):
        training.step()
    done.record()
    assert not done.query(), "the steps had waited for the GPU"
