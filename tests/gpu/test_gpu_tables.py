"""What is the ``cuda`` backend's own: grids of any size, tables that are kept from step to step, and graphs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from radam_fused import available_backends
from radam_fused.backends import ops
from radam_fused.backends.operator_args import StepArgs
from radam_fused.backends.reference import step as reference
from radam_fused.numerics.layout import layout_hash, segment_starts
from radam_fused.numerics.scalars import compute_scalars
from radam_fused.options import GROUP_DEFAULTS
from tests.gpu import on_gpu
from tests.support.cuda_host import same_layout
from tests.support.helpers import gradients, same_bits
from tests.support.paths import ROOT

pytestmark = pytest.mark.skipif(
    available_backends()["cuda"] is not None, reason=f"cuda cannot run here: {available_backends()['cuda']}"
)


class Problem:
    """Arguments of a step on the GPU, and the same on the CPU for ``reference``."""

    def __init__(self, segments: int, groups: int = 2) -> None:
        values = torch.randn(segments, 65, generator=torch.Generator().manual_seed(0))
        params = list(values.unbind())
        starts, length = segment_starts([p.numel() for p in params])
        table = [(start, layout_hash(p.shape, p.stride())) for start, p in zip(starts, params, strict=True)]
        rows = [compute_scalars({**GROUP_DEFAULTS, "lr": 0.01 * (k + 1)}, 9) for k in range(groups)]
        self.segments = torch.tensor(table, dtype=torch.int64)
        self.scalar_index = torch.arange(segments) % groups
        self.rows = torch.tensor(rows, dtype=torch.float64)
        grads = gradients([p.shape for p in params], torch.float32, 1)
        self.here = (params, grads, torch.zeros(length), torch.zeros(length))
        self.params, self.grads = [[same_layout(t, "cuda") for t in tensors] for tensors in (params, grads)]
        self.moments = [torch.zeros(length, device="cuda") for _ in range(2)]

    def step(self) -> None:
        ops.OPERATORS["cuda"].step(self.params, self.grads, *self.moments, self.segments, self.scalar_index, self.rows)

    def check(self, steps: int) -> None:
        """Every bit after so many steps with the same scalars."""
        for _ in range(steps):
            reference.step(StepArgs(*self.here, self.segments, self.scalar_index, self.rows))
        pairs = zip([*self.here[0], *self.here[2:]], [*self.params, *self.moments], strict=True)
        assert all(same_bits(a, b.cpu()) for a, b in pairs)
        assert self.here[2].any()


@pytest.mark.parametrize("blocks", [1, 3, 1009])
def test_any_grid_gives_the_same_bits(blocks: int) -> None:
    """In a process of its own: the library reads the number of blocks once."""
    code = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); "
        "from tests.gpu import on_gpu as gpu; from tests.kernels import test_bits as bits; "
        "pair = torch.bfloat16, torch.float32; "
        "bits.assert_same(gpu.train('cuda', *pair, steps=9), bits.train('reference', *pair, steps=9))"
    )
    environment = {**os.environ, "RADAM_FUSED_CUDA_BLOCKS": str(blocks)}
    subprocess.run([sys.executable, "-c", code, str(ROOT)], check=True, env=environment)


@pytest.mark.parametrize(
    ("segments", "groups"),
    [(300, 40), (3000, 40), (5000, 1), (50, 1000), (5000, 1000)],
    ids=["4_KB", "32_KB", "gradients_in_a_table", "rows_in_a_table", "both_in_tables"],
)
def test_any_number_of_segments_and_rows(segments: int, groups: int) -> None:
    problem = Problem(segments, groups)
    for _ in range(3):  # the tables are made once and found again
        problem.step()
    problem.check(steps=3)


def test_tables_follow_their_tensors() -> None:
    """Other gradients, then other parameters at the same moments: no table is taken for another."""
    problem = Problem(5000)
    problem.step()
    first, problem.grads = problem.grads, [g.clone() for g in problem.grads]
    problem.step()
    for g in problem.grads:
        g.fill_(float("nan"))
    problem.grads = first
    problem.params = [p.clone() for p in problem.params]
    problem.step()
    problem.check(steps=3)


def test_tables_on_several_streams() -> None:
    """A table that one stream drops is not handed out again while another still reads it."""
    problem = Problem(5000)
    streams = [torch.cuda.Stream() for _ in range(3)]
    for k in range(12):
        stream = streams[k % 3]
        stream.wait_stream(streams[(k - 1) % 3])
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            torch.cuda._sleep(1_000_000)
            problem.grads = [g.clone() for g in problem.grads] if k % 2 else problem.grads
            problem.step()
            scratch = [torch.full((5000,), -1, device="cuda") for _ in range(20)]  # where a freed table would be
            del scratch
    torch.cuda.synchronize()
    problem.check(steps=12)


@pytest.mark.parametrize("segments", [100, 5000], ids=["by_value", "in_tables"])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_captured_by_a_graph(segments: int, warm: bool) -> None:
    """A replay repeats the step with the capture's scalars, also after its tables were replaced in the cache."""
    problem = Problem(segments)
    if warm:
        problem.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        problem.step()
    others = [Problem(1, groups=1) for _ in range(on_gpu.ENTRIES + 1)]  # their moments are as many buckets
    for other in others:
        other.step()
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    problem.check(steps=3 + warm)


def test_other_tensors_are_noticed() -> None:
    """The negative control: a step too few shows."""
    problem = Problem(100)
    problem.step()
    with pytest.raises(AssertionError):
        problem.check(steps=2)


def test_nothing_is_written_when_a_tensor_does_not_fit() -> None:
    problem = Problem(300)
    before: list[Tensor] = [p.clone() for p in problem.params]
    problem.grads[-1] = problem.grads[-1].cpu()
    with pytest.raises((RuntimeError, ValueError)):
        problem.step()
    assert all(torch.equal(a, b) for a, b in zip(before, problem.params, strict=True))
