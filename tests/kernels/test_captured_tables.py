"""The tables that launches leave on a GPU, with graphs captured between: of ``cuda`` and ``triton``, on stand-ins.

A launch reads its tables when it runs, which for a captured one is in every replay. What a capture uploads is there
from that graph's replays on; what a graph refers to it does not keep alive.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from radam_fused.backends.triton import tables as triton_tables
from radam_fused.backends.triton.tables import Table
from tests.support.cuda_host import compiler
from tests.support.paths import ROOT

HERE = Path(__file__).parent
GRAPH_STREAM = 99
"""A capture runs on a stream of its own."""


class CudaTables:
    """csrc/cuda/table_cache.cpp, compiled with stubs of CUDA and torch."""

    kept = 1024

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library

    @contextmanager
    def capture(self) -> Iterator[int]:
        yield self._library.begin_capture()
        self._library.end_capture()

    def launch(self, bucket: int, stream: int, number: int, capturing: bool = False) -> Any:
        arguments = map(ctypes.c_int64, (bucket, stream, number))
        return self._library.launch(*arguments, ctypes.c_bool(capturing))

    def reads(self, launch: Any) -> str:
        return {1: "right", 0: "wrong", -1: "freed"}[self._library.reads_right(launch)]

    def replay(self, graph: Any) -> None:
        assert self._library.replay(graph), "a replay refers to memory that has been freed"


class TritonTables:
    """backends/triton/tables.py, with tensors of the CPU for the GPU's."""

    kept = 16

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stream, self._recording, self._graph = 0, False, None
        monkeypatch.setattr(triton_tables, "_kept", {})
        monkeypatch.setattr(triton_tables, "KEPT", self.kept)
        monkeypatch.setattr(triton_tables, "_current_stream", lambda device: (self._stream, self._recording))
        monkeypatch.setattr(triton_tables, "_copy", self._copy)

    def _copy(self, host: Tensor, device: torch.device) -> Tensor:
        if self._graph is None:
            return host.clone()
        there = torch.full_like(host, -1)
        self._graph.append((reference(there), reference(host)))
        return there

    @contextmanager
    def capture(self) -> Iterator[Any]:
        self._graph = graph = []
        yield graph
        self._graph = None

    def launch(self, bucket: int, stream: int, number: int, capturing: bool = False) -> Any:
        self._stream, self._recording = stream, capturing
        numbers = [torch.tensor([number, bucket]), torch.tensor([number])]
        wanted = [Table(lambda n=n: n, (k, bucket), n.tolist()) for k, n in enumerate(numbers)]
        found = triton_tables.on_device(torch.device("cpu"), wanted)
        return [(reference(part), n) for part, n in zip(found, numbers, strict=True)]

    def reads(self, launch: Any) -> str:
        parts = [(where(), n) for where, n in launch]
        if any(part is None for part, _ in parts):
            return "freed"
        return "right" if all(torch.equal(part[: len(n)], n) for part, n in parts) else "wrong"

    def replay(self, graph: Any) -> None:
        for to, host in graph:
            found = [where() for where in (to, host)]
            assert all(part is not None for part in found), "a replay refers to memory that has been freed"
            found[0].copy_(found[1])


def reference(tensor: Tensor) -> Any:
    """A function that returns the tensor, or None if its memory was freed."""
    storage, kind = StorageWeakRef(tensor.untyped_storage()), (tensor.storage_offset(), tensor.shape, tensor.stride())

    def found() -> Tensor | None:
        if storage.expired():
            return None
        memory = torch.UntypedStorage._new_with_weak_ptr(storage.cdata)
        return torch.empty(0, dtype=torch.int64).set_(memory, *kind)

    return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "tables.so"
    flags = ("-std=c++17", "-O1", "-shared", "-fPIC", f"-I{HERE / 'stubs'}", f"-I{ROOT / 'csrc'}")
    subprocess.run([*compiler(), *flags, str(HERE / "cuda_tables.cpp"), "-o", str(path)], check=True)
    return path


_buckets = iter(range(1, 10**9))


@pytest.fixture(params=["cuda", "triton"])
def tables(request: pytest.FixtureRequest, library: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    return CudaTables(ctypes.CDLL(str(library))) if request.param == "cuda" else TritonTables(monkeypatch)


def evict(tables: Any) -> None:
    """As many other launches as tables are kept for, on another stream, and one more."""
    for _ in range(tables.kept + 1):
        assert tables.reads(tables.launch(next(_buckets), 7, 1)) == "right"


def test_two_graphs_and_eager_steps_between(tables: Any) -> None:
    bucket = next(_buckets)
    assert tables.reads(tables.launch(bucket, 1, 100)) == "right"
    with tables.capture() as first:
        found = tables.launch(bucket, GRAPH_STREAM, 100, capturing=True)
    with tables.capture() as second:
        made = tables.launch(bucket, GRAPH_STREAM, 200, capturing=True)  # other addresses: another shape's gradients
    assert tables.reads(made) == "wrong"  # nothing has been copied yet
    assert tables.reads(tables.launch(bucket, 1, 200)) == "right"
    with tables.capture() as third:
        again = tables.launch(bucket, GRAPH_STREAM, 200, capturing=True)
    for k in range(3):
        assert tables.reads(tables.launch(bucket, 1, 300 + k)) == "right"
        evict(tables)
        for graph, launch in ((second, made), (first, found), (third, again)):
            tables.replay(graph)
            assert tables.reads(launch) == "right"


def test_a_capture_before_any_eager_launch(tables: Any) -> None:
    bucket = next(_buckets)
    with tables.capture() as graph:
        cold = [tables.launch(bucket, GRAPH_STREAM, 100, capturing=True) for _ in range(2)]
    assert tables.reads(tables.launch(bucket, GRAPH_STREAM, 100)) == "right"  # eagerly, on the very stream
    evict(tables)
    for _ in range(2):
        tables.replay(graph)
        assert [tables.reads(launch) for launch in cold] == ["right", "right"]


def test_a_table_taken_for_uploaded_is_noticed(tables: Any) -> None:
    """The negative control: a launch that does not know that it is captured."""
    bucket = next(_buckets)
    with tables.capture():
        tables.launch(bucket, 1, 100, capturing=False)
    assert tables.reads(tables.launch(bucket, 1, 100)) == "wrong"


def test_a_table_that_nothing_keeps_is_noticed(tables: Any) -> None:
    """The negative control: what an eager launch has uploaded is freed some launches later."""
    launch = tables.launch(next(_buckets), 1, 100)
    evict(tables)
    assert tables.reads(launch) == "freed"
