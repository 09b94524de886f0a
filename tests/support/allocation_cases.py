"""The calls whose allocations fail in turn: steps, first steps, loading, new groups, cleared gradients."""

from __future__ import annotations

import copy
import functools
import signal
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from radam_fused import FusedRAdam
from radam_fused.step import run as launching
from tests.support.mixed_dtypes import give, parameters

torch.set_num_threads(1)


def raw(tensor: Tensor | None) -> bytes | None:
    """All bytes of a tensor."""
    if tensor is None:
        return None
    return bytes(tensor.detach().contiguous().flatten().view(torch.uint8).tolist())


class Step:
    """A step of parameters of one bucket, or of as many dtypes as the state format allows.

    Args:
        several: whether there are several buckets.
        steps: how many were taken before.
        missing: whether a parameter has no gradient: the step then takes lists of tensors.
        options: of the optimizer.
    """

    def __init__(self, several: bool, steps: int = 2, missing: bool = False, **options: Any) -> None:
        if several:
            left_out = torch.float64 if options.get("state_dtype") == torch.int8 else None
            self.params = [p for p in parameters() if p.dtype != left_out]
        else:
            dtype = torch.bfloat16 if "master_weights" in options else torch.float32
            self.params = [nn.Parameter(torch.linspace(-1.0, 1.0, 30 + k).to(dtype)) for k in range(3)]
        self.opt = FusedRAdam(self.params, lr=0.01, **options)
        self.missing = missing
        for t in range(steps):
            self.give(t)
            self.opt.step()
        self.give(steps)

    def give(self, t: int) -> None:
        give(self.params, t)
        if self.missing:
            self.params[0].grad = None

    def call(self) -> None:
        self.opt.step()

    def observe(self) -> dict[str, Any]:
        state = {i: self.opt.state.get(p) or {} for i, p in enumerate(self.params)}
        return {
            "parameters": [raw(p) for p in self.params],
            "gradients": [raw(p.grad) for p in self.params],
            "state": {i: {name: raw(value) for name, value in entry.items()} for i, entry in state.items()},
            "entries": len(self.opt.state),
            "groups": [{**group, "params": len(group["params"])} for group in self.opt.param_groups],
            "gradients are on": torch.is_grad_enabled(),
            "a handler of signals": str(signal.getsignal(signal.SIGINT)),
        }

    def finish(self) -> dict[str, Any]:
        for t in range(90, 92):
            self.give(t)
            self.opt.step()
        return self.observe()


class Moved(Step):
    """Parameters at other addresses than before, which the step compares with each other."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for p in self.params:
            p.data = p.data.clone()


class ReadsPairs(Moved):
    """`read_pairs` alone."""

    def call(self) -> None:
        for bucket in self.opt._bucket_manager.buckets:
            assert bucket.last_plan.pointer_table.fits()


class Scaled(Step):
    """What GradScaler gives its optimizer."""

    def give(self, t: int) -> None:
        super().give(t)
        self.opt.grad_scale, self.opt.found_inf = torch.tensor([8.0]), torch.tensor([0.0])


class Load(Step):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.loaded = copy.deepcopy(self.opt.state_dict())
        self.give(40)
        self.opt.step()

    def call(self) -> None:
        self.opt.load_state_dict(self.loaded)


class AddGroup(Step):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.extra = nn.Parameter(torch.linspace(0.0, 1.0, 9))

    def call(self) -> None:
        self.opt.add_param_group({"params": [self.extra]})


class ZeroGrad(Step):
    def call(self) -> None:
        self.opt.zero_grad()


OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "flatten": {"flatten": True},
    "clipped": {"max_grad_norm": 0.5},
    "capturable": {"capturable": True},
    "zero_grads": {"zero_grads": True},
    "int8": {"state_dtype": torch.int8},
    "offload": {"offload": True},
}
CALLS: dict[str, Callable[..., Any]] = {
    "step": Step,
    "first": functools.partial(Step, steps=0),
    "missing": functools.partial(Step, missing=True),
    "moved": Moved,
    "scaled": Scaled,
}
CASES: dict[str, Callable[[], Any]] = {
    f"{call}-{name}-{'several' if several else 'one'}": functools.partial(make, several, **options)
    for call, make in CALLS.items()
    for name, options in OPTIONS.items()
    for several in (False, True)
    if not (several and name == "offload")  # docs/reliability.md: not promised
    if (call, name) not in {("moved", "flatten"), ("missing", "flatten"), ("moved", "offload")}
}
for _name, _options in {"split": {"master_weights": "split"}, "kahan": {"master_weights": "kahan"}}.items():
    CASES[f"step-{_name}-one"] = functools.partial(Step, False, **_options)
    CASES[f"first-{_name}-one"] = functools.partial(Step, False, steps=0, **_options)
for _name in ("cpu", "flatten", "int8"):
    for _several in (False, True):
        _end = f"{_name}-{'several' if _several else 'one'}"
        CASES[f"load-{_end}"] = functools.partial(Load, _several, **OPTIONS[_name])
        CASES[f"add_group-{_end}"] = functools.partial(AddGroup, _several, **OPTIONS[_name])
        CASES[f"zero_grad-{_end}"] = functools.partial(ZeroGrad, _several, **OPTIONS[_name])
CASES["read_pairs"] = functools.partial(ReadsPairs, True)


def one_by_one() -> None:
    """For negative controls: buckets are stepped in a call each."""
    launching.run_together = lambda manager, launches, scalars, zero_grads: launches  # type: ignore[assignment]
