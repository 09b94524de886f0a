"""A stand-in for Triton's driver: kernels are "compiled" by their first launch, and called directly from then on.

On a machine without a GPU Triton interprets the kernels, which leaves out the direct call of a compiled kernel. Here
the ordinary launch of an interpreted kernel returns a `Compiled`, as that of a compiled one does. It is called as
Triton's launchers are, with addresses for tensors, and has the interpreter run the kernel on what is stored there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from radam_fused.backends.triton import launch, pointer_norm, pointer_scalars, pointer_step, step, tables


class Compiled:
    """What a launch returns and later launches call."""

    function = "the function's handle"
    packed_metadata = "what the launcher needs to know"

    def __init__(self, kernel: Kernel, arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        self._kernel = kernel
        self._dtypes = [a.dtype if isinstance(a, Tensor) else None for a in arguments]
        self._aligned = [isinstance(a, Tensor) and a.data_ptr() % 16 == 0 for a in arguments]
        self._constants = constants
        if not kernel.runs:
            self.run = _run_nothing  # type: ignore[method-assign]

    def run(self, x: int, y: int, z: int, stream: int, function: Any, metadata: Any, *rest: Any) -> None:
        launch_metadata, enter, leave, *arguments = rest
        assert (y, z, stream, function, metadata) == (1, 1, self._kernel.stream, self.function, self.packed_metadata)
        assert launch_metadata is enter is leave is None
        given = arguments[: len(self._dtypes)]
        assert arguments[len(given) :] == [self._constants[n] for n in self._kernel.arg_names if n in self._constants]
        assert all(address % 16 == 0 for address, so in zip(given, self._aligned, strict=True) if so)
        self._kernel.direct += 1
        there = [a if dtype is None else at(a, dtype) for a, dtype in zip(given, self._dtypes, strict=True)]
        self._kernel.interpreted[(x,)](*there, **self._constants)


def _run_nothing(*arguments: Any) -> None:
    """A launch that costs next to nothing."""


def _copy(host: Tensor, device: torch.device) -> Tensor:
    return host.clone()


class _Kept:
    """Memory by its size, as the allocators of a GPU and of pinned memory keep it: malloc takes long for a large part.

    A part is handed out again while its last user has it, which only does for kernels that do not run.
    """

    def __init__(self) -> None:
        self._parts: dict[int, Tensor] = {}

    def memory(self, words: int, device: torch.device) -> Tensor:
        if words not in self._parts:
            self._parts[words] = torch.empty(words, dtype=torch.int64)
        return self._parts[words]

    def copy(self, host: Tensor, device: torch.device) -> Tensor:
        return self.memory(host.numel(), device).copy_(host)


def at(address: int, dtype: torch.dtype) -> Tensor:
    """A tensor of one element at an address; the interpreter reads whatever follows it."""
    return torch.frombuffer((ctypes.c_byte * dtype.itemsize).from_address(address), dtype=dtype)


class Kernel:
    """A `JITFunction` around an interpreted kernel.

    Attributes:
        ordinary, direct: how many launches went either way.
        signatures: the dtypes and numbers of what was compiled.
    """

    def __init__(self, interpreted: Any, runs: bool = True) -> None:
        self.interpreted, self.runs = interpreted, runs
        code = interpreted.fn.__code__
        self.arg_names = list(code.co_varnames[: code.co_argcount])
        self.pre_run_hooks: list[Callable[..., None]] = []
        self.stream = 7
        self.ordinary = self.direct = 0
        self.signatures: set[Any] = set()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Compiled]:
        def start(*arguments: Any, **constants: Any) -> Compiled:
            self.ordinary += 1
            kinds = (a.dtype if isinstance(a, Tensor) else type(a) for a in arguments)
            self.signatures.add((*kinds, *constants.items()))
            if self.runs:
                self.interpreted[grid](*arguments, **constants)
            return Compiled(self, arguments, constants)

        return start


@contextmanager
def replacing_driver(runs: bool = True) -> Iterator[dict[str, Kernel]]:
    """Lets the package launch interpreted kernels as compiled ones; gives them by name. With ``runs`` they do run."""
    made: dict[Any, Kernel] = {}
    names: dict[str, Kernel] = {}
    kernel_for, kernel_for_norm, ordinary_launch = step.kernel_for, pointer_norm.kernel_for, launch.launch
    kernel_for_scalars = pointer_scalars.kernel_for

    def wrapped(kernel: Any) -> Kernel:
        if kernel not in made:
            made[kernel] = names[kernel.fn.__name__] = Kernel(kernel, runs)
        return made[kernel]

    def kernel_of(*args: Any) -> tuple[Any, dict[str, Any]]:
        kernel, constants = kernel_for(*args)
        return wrapped(kernel), constants

    def norm_kernel_of(*args: Any) -> tuple[Any, dict[str, Any]]:
        kernel, constants = kernel_for_norm(*args)
        return wrapped(kernel), constants

    def scalars_kernel_of() -> tuple[Any, dict[str, Any]]:
        kernel, constants = kernel_for_scalars()
        return wrapped(kernel), constants

    def launched(kernel: Any, *rest: Any) -> None:
        ordinary_launch(kernel if isinstance(kernel, Kernel) else wrapped(kernel), *rest)

    active = SimpleNamespace(get_current_device=lambda: 0, get_current_stream=lambda device: 7)
    with (
        patch.object(step, "kernel_for", kernel_of),
        patch.object(pointer_step, "kernel_for", kernel_of),
        patch.object(pointer_norm, "kernel_for", norm_kernel_of),
        patch.object(pointer_scalars, "kernel_for", scalars_kernel_of),
        patch.object(step, "launch", launched),
        patch("radam_fused.backends.triton.scalars.launch", launched),
        patch("radam_fused.backends.triton.grad_norm.launch", launched),
        patch.object(launch, "_driver", lambda: SimpleNamespace(active=active)),
        patch.object(tables, "_copy", _copy if runs else _Kept().copy),
        patch.object(tables, "host_memory", tables.host_memory if runs else _Kept().memory),
    ):
        yield names
