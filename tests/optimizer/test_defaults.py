"""A default device or default dtype other than the parameters': nothing of a step depends on either."""

from __future__ import annotations

import ast
import copy
import pathlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._device import _device_constructors

import radam_fused
from radam_fused import FusedRAdam, step_in_backward
from radam_fused.step.collect import collect_bucket
from tests.support.helpers import BACKENDS, same_bits
from tests.support.option_sets import BF16
from tests.support.option_sets import OPTIONS as COMMON

PACKAGE = pathlib.Path(radam_fused.__file__).parent
FACTORIES = {f.__name__ for f in _device_constructors()} | {"arange", "tensor", "as_tensor"}
LIKE = {name for name in dir(torch) if name.endswith("_like")}
"""Made as another tensor is: they name neither device nor dtype."""


def unnamed(source: str) -> list[str]:
    """Calls of torch's factory functions that leave the device or the dtype to a default."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        if not (isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"):
            continue
        named = {keyword.arg for keyword in node.keywords}
        if node.func.attr in FACTORIES and not {"dtype", "device"} <= named:
            found.append(f"line {node.lineno}: torch.{node.func.attr}")
    return found


def test_every_tensor_names_its_device_and_its_dtype() -> None:
    sources = {path: path.read_text() for path in PACKAGE.rglob("*.py")}
    assert sum(source.count("torch.tensor(") for source in sources.values()) > 10
    assert {path.name: calls for path, source in sources.items() if (calls := unnamed(source))} == {}


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("torch.zeros(3)", 1),
        ("torch.arange(3, dtype=torch.int64)", 1),
        ("torch.tensor([1.0], device='cpu')", 1),
        ("torch.full((), 1.0, dtype=torch.float64, device=d)", 0),
        ("torch.zeros_like(p)", 0),
        ("p.new_zeros(3)", 0),
    ],
)
def test_the_search_finds_what_it_is_for(line: str, count: int) -> None:
    assert len(unnamed(line)) == count


OPTIONS = {**COMMON, "exact": {"rectification": "exact", "degenerated_to_sgd": False}}


def tensors(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((70, 65), (65,), (), (0, 3))
    return [torch.randn(s, generator=generator, dtype=torch.float64, device="cpu").to(dtype) for s in shapes]


def trained(options: dict[str, Any], dtype: torch.dtype, tensor_lr: bool = False) -> list[Tensor]:
    """What seven steps make of parameters and state, with a checkpoint, a new group and a frozen layer between."""
    params = tensors(dtype)
    rate = torch.tensor(0.01, dtype=torch.float32, device="cpu") if tensor_lr else 0.01
    optimizer = FusedRAdam(params[:2], lr=rate, **options)
    for t in range(7):
        if t == 2:
            optimizer.add_param_group({"params": params[2:], "weight_decay": 0.1})
        if t == 4:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer.load_state_dict(saved)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        for k, p in enumerate(held):
            if (t, k) != (3, 1):
                grad = torch.sin(torch.arange(p.numel(), dtype=torch.float64, device="cpu") * (t + 1) + k)
                p.grad = grad.reshape(p.shape).to(dtype)
            elif not options.get("flatten"):
                p.grad = None
        optimizer.step()
        optimizer.zero_grad()
    optimizer.rectification_state()
    states = [value.detach() for entry in optimizer.state.values() for value in entry.values()]
    norm = [] if optimizer.last_grad_norm is None else [optimizer.last_grad_norm]
    return [p.detach() for p in params] + states + norm


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def both() -> Iterator[None]:
    with torch.device("meta"), default_dtype(torch.float64):
        yield


DEFAULTS: dict[str, Callable[[], Any]] = {
    "both": both,
    "set_default_device": lambda: default_device("meta"),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
}


@pytest.mark.sampled
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("default", "backend"),
    [(default, backend) for default in DEFAULTS for backend in BACKENDS if default == "both" or backend == "cpu"],
)
def test_every_option_gives_the_bits_that_it_gives_without(options: str, default: str, backend: str) -> None:
    given = {"backend": backend, **OPTIONS[options]}
    if "offload" in options or options == "differentiable":
        given["backend"] = "auto"  # they take no other
    dtype = torch.bfloat16 if options in BF16 else torch.float32
    expected = trained(given, dtype)
    with DEFAULTS[default]():
        found = trained(given, dtype)
    assert len(found) == len(expected) > 4
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))
    assert not same_bits(found[0], tensors(dtype)[0])


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.complex64])
@pytest.mark.parametrize("tensor_lr", [False, True])
@pytest.mark.parametrize("default", ["both"])
def test_other_parameters_and_a_tensor_lr(dtype: torch.dtype, tensor_lr: bool, default: str, backend: str) -> None:
    options = {"backend": backend, "max_grad_norm": 0.1}
    expected = trained(options, dtype, tensor_lr)
    with DEFAULTS[default]():
        found = trained(options, dtype, tensor_lr)

    def parts(values: list[Tensor]) -> list[Tensor]:
        return [torch.view_as_real(v) if v.is_complex() else v for v in values]

    assert all(same_bits(a, b) for a, b in zip(parts(found), parts(expected), strict=True))


@pytest.mark.parametrize("default", DEFAULTS)
def test_gradscaler_steps_and_skips(default: str) -> None:
    def run() -> list[Tensor]:
        (p,) = params = [torch.ones(70, dtype=torch.float32, device="cpu")]
        optimizer = FusedRAdam(params)
        for bad in (0.0, 1.0, 0.0):
            p.grad = torch.full((70,), 8.0, dtype=torch.float32, device="cpu")
            optimizer.grad_scale = torch.tensor(4.0, dtype=torch.float32, device="cpu")
            optimizer.found_inf = torch.tensor(bad, dtype=torch.float32, device="cpu")
            optimizer.step()
        return [p, *optimizer.state[p].values()]

    expected = run()
    assert expected[1].item() == 2.0
    with DEFAULTS[default]():
        found = run()
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("default", DEFAULTS)
def test_torch_compile_and_stepping_in_backward(default: str) -> None:
    def run(compiled: bool) -> Tensor:
        p = torch.nn.Parameter(torch.ones(70, dtype=torch.float32, device="cpu"))
        factors = torch.full((70,), 2.0, dtype=torch.float32, device="cpu")
        optimizer = FusedRAdam([p], lr=torch.tensor(0.1, dtype=torch.float32, device="cpu"), max_grad_norm=1.0)
        if not compiled:
            optimizer = FusedRAdam([p], lr=0.1)
            step_in_backward(optimizer)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(3):
            (p * factors).sum().backward()
            step()
        return p.detach()

    for compiled in (False, True):
        expected = run(compiled)
        torch._dynamo.reset()
        with DEFAULTS[default]():
            found = run(compiled)
        assert same_bits(found, expected)


def test_a_default_device_leaves_the_pointer_path_on(monkeypatch: pytest.MonkeyPatch) -> None:
    p = torch.ones(7, device="cpu")
    optimizer = FusedRAdam([p])

    def pointer_path() -> bool:
        p.grad = torch.ones(7, device="cpu")
        optimizer.step()
        manager = optimizer._bucket_manager
        assert manager is not None
        launch = collect_bucket(manager, manager.buckets[0])
        assert launch is not None
        return launch.pointer_table is not None

    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return function(*args, **(kwargs or {}))

    assert pointer_path()
    with default_device("meta"):
        assert pointer_path()
        with Watching():
            assert not pointer_path()
    with Watching(), torch.device("meta"):
        assert not pointer_path()
    assert pointer_path()


@pytest.mark.parametrize(
    "before",
    [
        "torch.set_default_device('meta')",
        "torch.set_default_dtype(torch.float64)",
        pytest.param("mode = torch._subclasses.FakeTensorMode(); mode.__enter__()", marks=pytest.mark.long),
    ],
)
def test_imported_under_a_default_it_finds_the_pointer_path(before: str) -> None:
    script = (
        f"import torch\nimport torch._subclasses\n{before}\nimport radam_fused\nfrom radam_fused import cpp_helpers\n"
        "print(cpp_helpers.HAS_POINTER_PATH)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr
