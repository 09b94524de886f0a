"""The candidates of a benchmark: FusedRAdam, the baselines, and on the CPU the bandwidth roofline.

`CPU_CANDIDATES` and `GPU_CANDIDATES` hold what each suite can measure. Both suites set a candidate up with `start`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from bench.keys import BASELINE, OURS, ROOFLINE
from bench.optimizers import bandwidth_roofline
from bench.optimizers.baselines import BASELINES, HYPERPARAMETERS, Baseline, Skipped
from bench.optimizers.time_limit import time_limit
from bench.workloads.cases import Case

FIRST_STEPS = 7
"""Taken before anything is timed: RAdam is rectified from step 6 on, and lazy compilation is over."""


@dataclass
class Runner:
    """A candidate that is set up over a case.

    Attributes:
        step: one step over the whole case; this call is what is timed.
        params: the parameters that it updates, in the order of the case's shapes; empty for the roofline.
        optimizer: None for the roofline.
        steps: how many steps it has taken.
    """

    step: Callable[[], object]
    params: list[Tensor] = field(default_factory=list)
    optimizer: torch.optim.Optimizer | None = None
    steps: int = 0


@dataclass(frozen=True)
class Candidate:
    """One row of the tables.

    Attributes:
        name: what result files and the command line call it.
        label: what tables and plots call it.
        role: `OURS`, `BASELINE` or `ROOFLINE` of `bench.keys`.
        build: sets it up over a case, from parameters and gradients, which it may change; raises `Skipped`.
        kind: what it computes: "radam", "adam", "schedule-free", or "" for the roofline.
        arrays: in fp32, how many arrays of the parameters' size it holds at most, temporaries included.
        state_bytes: per element: 8 for two fp32 moments. None for two moments in the parameter's dtype.
        same_update: whether its parameters must agree with torch.optim.RAdam's.
        writes_grads: whether a step changes the gradients.
        backend, flatten: FusedRAdam's options; the backend is None for all other candidates.
        setup: seconds that `start` may take, for candidates that compile something; None for no limit.
    """

    name: str
    label: str
    role: str
    build: Callable[[Case, list[Tensor], list[Tensor]], Runner]
    kind: str = ""
    arrays: int = 4
    state_bytes: int | None = 8
    same_update: bool = False
    writes_grads: bool = False
    backend: str | None = None
    flatten: bool = False
    setup: float | None = None

    @property
    def ours(self) -> bool:
        return self.role == OURS

    def step_bytes(self, case: Case, dtype: torch.dtype = torch.float32) -> int:
        """Bytes that its own step moves at least; fewer than FusedRAdam's with moments of fewer bytes."""
        return case.step_bytes(dtype, 2 * dtype.itemsize if self.state_bytes is None else self.state_bytes)


def start(
    candidate: Candidate,
    case: Case,
    params: list[Tensor],
    grads: list[Tensor],
    steps: int = FIRST_STEPS,
    limit: float | None = None,
    finish: Callable[[], None] = lambda: None,
) -> Runner:
    """Sets a candidate up over these tensors, which it may change, and takes its first steps.

    Args:
        steps: how many.
        limit: seconds until the run's end, for a candidate whose `setup` is limited.
        finish: waits until the device has taken the steps.

    Raises:
        Skipped: the candidate cannot run here.
        TimeUp: its first steps took longer than they may.
    """
    seconds = candidate.setup if candidate.setup is None or limit is None else min(candidate.setup, limit)
    with time_limit(seconds):
        runner = candidate.build(case, params, grads)
        del params, grads  # flatten=True has copied them; the steps need the memory
        while runner.steps < steps:
            runner.step()
            runner.steps += 1
        finish()
    return runner


def _attach(params: list[Tensor], grads: list[Tensor]) -> None:
    for param, grad in zip(params, grads, strict=True):
        param.requires_grad_().grad = grad


def fused(backend: str, flatten: bool, name: str, label: str) -> Candidate:
    """FusedRAdam with one of its backends."""

    def build(case: Case, params: list[Tensor], grads: list[Tensor]) -> Runner:
        try:
            from radam_fused import FusedRAdam, available_backends
        except ImportError as error:
            raise Skipped(f"radam_fused does not import: {error}") from error
        missing = available_backends().get(backend)
        if missing is not None:
            raise Skipped(missing)
        _attach(params, grads)
        optimizer = FusedRAdam(case.grouped(params), backend=backend, flatten=flatten, **HYPERPARAMETERS)
        return Runner(optimizer.step, params, optimizer)

    arrays = 5 if flatten else 3  # flatten=True copies parameters and gradients into buffers of its own
    return Candidate(name, label, OURS, build, "radam", arrays, same_update=True, backend=backend, flatten=flatten)


def adapted(baseline: Baseline, device: str) -> Candidate:
    """A baseline on the CPU or on a GPU."""

    def build(case: Case, params: list[Tensor], grads: list[Tensor]) -> Runner:
        baseline.check(case.tensors, device)
        _attach(params, grads)
        optimizer = baseline.make(case.grouped(params))
        return Runner(baseline.step(optimizer), params, optimizer, steps=int(baseline.compiled))

    return Candidate(
        baseline.name,
        baseline.label,
        BASELINE,
        build,
        baseline.kind,
        baseline.arrays,
        baseline.state_bytes,
        baseline.same_update,
        baseline.writes_grads,
        setup=(baseline.setup or {}).get(device),
    )


def _roofline(case: Case, params: list[Tensor], grads: list[Tensor]) -> Runner:
    if case.flat_roofline:
        p, g = ([torch.cat([value.flatten() for value in values])] for values in (params, grads))
    else:
        p, g = params, grads
    m, v = ([torch.zeros_like(value) for value in p] for _ in range(2))
    try:
        add = bandwidth_roofline.prepare(p, g, m, v, torch.get_num_threads())
    except (RuntimeError, OSError) as error:
        raise Skipped(str(error)) from error
    arrays = (p, g, m, v)

    def step(_arrays: object = arrays) -> None:  # `add` holds addresses only; the default argument owns the arrays
        add()

    return Runner(step)


CPU_CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        Candidate(ROOFLINE, "roofline (adds only)", ROOFLINE, _roofline),
        fused("cpu", True, "fused-flat", "FusedRAdam, flatten"),
        fused("cpu", False, "fused", "FusedRAdam"),
        *map(partial(adapted, device="cpu"), BASELINES.values()),
    )
}
ALWAYS = [name for name, candidate in CPU_CANDIDATES.items() if candidate.role != BASELINE]
"""Measured in every memory group, because all ratios are taken against them."""


def with_baselines(names: Sequence[str]) -> list[Candidate]:
    """The CPU candidates of `ALWAYS` and these baselines."""
    return [CPU_CANDIDATES[name] for name in (*ALWAYS, *names)]


def on_gpu(backend: str, flatten: bool) -> Candidate:
    """FusedRAdam with one of its backends, named for the GPU suite."""
    suffixes = ("-flat", ", flatten") if flatten else ("", "")
    return fused(backend, flatten, backend + suffixes[0], f"FusedRAdam {backend}{suffixes[1]}")


GPU_CANDIDATES = {
    candidate.name: candidate
    for candidate in (
        *(on_gpu(backend, flatten) for backend in ("cuda", "triton") for flatten in (False, True)),
        # Baselines that compile something come last: if that takes long, only they are missing.
        *sorted(
            map(partial(adapted, device="cuda"), BASELINES.values()), key=lambda candidate: candidate.setup is not None
        ),
    )
}
