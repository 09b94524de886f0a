"""Starts a kernel: through Triton the first time, which compiles it, and by a call of the compiled kernel from then on.

`JITFunction.run` looks at every argument of every launch to find out which compiled kernel fits, in some 20 µs. A
`Launcher` has one signature, so that its first launch on a device has found out for all that follow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from .compat import is_hooked

Arguments = tuple[Any, ...]
"""Of a kernel, without its constants: tensors or their addresses, numbers and None."""
ALIGNED = 16
"""Bytes: Triton compiles another kernel for a pointer that is not a multiple of them."""
_HERE: AbstractContextManager[None] = nullcontext()


class Launcher:
    """One kernel with its constants and options, for arguments of one signature.

    Args:
        kernel: what `triton.jit` made.
        constants: its last parameters, by name, and the compiler's options.

    Attributes:
        compiled: the kernel of each device, by its index; none where Triton interprets.
    """

    def __init__(self, kernel: Any, constants: dict[str, Any]) -> None:
        self._kernel = kernel
        self._constants = constants
        self._last = tuple(constants[name] for name in getattr(kernel, "arg_names", ()) if name in constants)
        self.compiled: dict[int, Any] = {}

    def start(self, programs: int, addresses: Arguments, tensors: Callable[[], Arguments]) -> None:
        """Starts so many programs on the current device and stream.

        Args:
            programs: how many.
            addresses: the arguments, with addresses for tensors.
            tensors: gives the same with the tensors, for a launch that Triton has to look at.
        """
        if self.compiled and not is_hooked(self._kernel):
            active = _driver().active
            device = active.get_current_device()
            compiled = self.compiled.get(device)
            if compiled is not None:
                compiled.run(
                    programs,
                    1,
                    1,
                    active.get_current_stream(device),
                    compiled.function,
                    compiled.packed_metadata,
                    None,  # what hooks are given, and the hooks on both sides of the launch
                    None,
                    None,
                    *addresses,
                    *self._last,
                )
                return
        compiled = self._kernel[(programs,)](*tensors(), **self._constants)
        if compiled is not None:
            self.compiled[_driver().active.get_current_device()] = compiled


@functools.cache
def _driver() -> Any:
    from triton.runtime import driver  # here, because Triton need not be installed

    return driver


@functools.cache
def _launcher(kernel: Any, constants: tuple[tuple[str, Any], ...], signature: tuple[Any, ...]) -> Launcher:
    return Launcher(kernel, dict(constants))


def launch(kernel: Any, programs: int, arguments: Arguments, constants: dict[str, Any]) -> None:
    """Starts a kernel on the current device and stream, with the `Launcher` of its arguments' signature."""
    signature = tuple(map(_kind, arguments))
    launcher = _launcher(kernel, tuple(constants.items()), signature)
    launcher.start(programs, addresses_of(arguments), lambda: arguments)


def _kind(argument: Any) -> Any:
    """What Triton compiles for, of an argument that its kernel does not specialise on a value of."""
    if isinstance(argument, Tensor):
        return argument.dtype, argument.data_ptr() % ALIGNED == 0
    if isinstance(argument, int):
        return int, -(2**31) <= argument < 2**31
    return type(argument)


def addresses_of(arguments: Sequence[Any]) -> Arguments:
    """The arguments, with addresses for tensors."""
    return tuple(argument.data_ptr() if isinstance(argument, Tensor) else argument for argument in arguments)


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """A context in which a tensor's device is the current one; nothing is done where it is already."""
    if not tensor.is_cuda or torch._C._cuda_getDevice() == tensor.device.index:
        return _HERE
    return torch.cuda.device(tensor.device)
