"""Random sequences of what users do, on FusedRAdam and on torch.optim.RAdam with torch's own utilities."""

from __future__ import annotations

import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="requirements/dev.txt has it")

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn

from radam_fused import FusedRAdam, step_in_backward
from radam_fused.backends.staging import Transfer
from radam_fused.gradient_release import StepInBackward
from radam_fused.state.step_counts import StepCounts
from radam_fused.state.tracked_dict import ParameterState
from radam_fused.state.views import ShownViews
from radam_fused.step.scalars import DeviceScalars
from tests.support.helpers import same_bits

pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout")  # on purpose

SHAPES = [(4, 3), (5,), (), (2, 3), (0,), (3, 1, 2)]
MAX_NORM = 0.5
NAMES = ("step", "exp_avg", "exp_avg_sq")

seeds = st.integers(0, 999)
picks = st.integers(0, len(SHAPES) - 1)
subsets = st.sets(picks, max_size=3)
rates = st.sampled_from([0.0, 0.01, 0.1])
betas = st.sampled_from([(0.9, 0.999), (0.8, 0.9), (0.0, 0.99), (0.9, 0.99999)])
decays = st.sampled_from([0.0, 0.1])
flags = st.booleans()


def noise(shape: torch.Size | tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda g: g.clone(memory_format=torch.contiguous_format),
    "transposed": lambda g: g.t().clone(memory_format=torch.contiguous_format).t() if g.dim() == 2 else g.clone(),
    "strided": lambda g: torch.stack([g, -g], -1)[..., 0],
    "misaligned": lambda g: torch.cat([torch.zeros(1), g.flatten()])[1:].view(g.shape),
}
layouts = st.sampled_from(sorted(LAYOUTS))


class Training(RuleBasedStateMachine):
    """Both optimizers, their parameters side by side."""

    kind: type[FusedRAdam] = FusedRAdam

    @initialize(
        backend=st.sampled_from(["cpu", "cpu", "reference"]),
        flatten=flags,
        offload=flags,
        zero_grads=flags,
        capturable=flags,
        clip=flags,
        named=flags,
        frozen=subsets,
    )
    def start(
        self,
        backend: str,
        flatten: bool,
        offload: bool,
        zero_grads: bool,
        capturable: bool,
        clip: bool,
        named: bool,
        frozen: set[int],
    ) -> None:
        self.flatten, self.zero_grads = flatten, zero_grads
        self.offload = offload and backend == "cpu" and not flatten
        capturable = capturable and not self.offload
        self.clip = clip and backend == "cpu"  # the reference adds 1,024 x 1,024 lanes for the smallest gradient
        self.options: dict[str, Any] = {"backend": backend, "flatten": flatten, "zero_grads": zero_grads}
        if self.offload:
            self.options["offload"] = True
        if self.clip:
            self.options["max_grad_norm"] = MAX_NORM
        self.copies = 0
        self.saved: tuple[Any, Any] | None = None
        params = [nn.Parameter(noise(shape, i)) for i, shape in enumerate(SHAPES[:3])]
        for i in frozen & {0, 1, 2}:
            params[i].requires_grad_(False)
        theirs = copy.deepcopy(params)
        pair = [[(f"p{i}", p) for i, p in enumerate(side)] if named else side for side in (params, theirs)]
        self.ours = self.kind(pair[0], lr=0.1, capturable=capturable, **self.options)
        self.theirs = torch.optim.RAdam(pair[1], lr=0.1)
        self.named = named
        self.attach()

    # Both sides.

    @property
    def pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        sides = [[p for group in opt.param_groups for p in group["params"]] for opt in (self.ours, self.theirs)]
        return list(zip(*sides, strict=True))

    def pick(self, index: int) -> tuple[nn.Parameter, nn.Parameter]:
        return self.pairs[index % len(self.pairs)]

    def group(self, index: int) -> list[dict[str, Any]]:
        return [opt.param_groups[index % len(opt.param_groups)] for opt in (self.ours, self.theirs)]

    def attach(self) -> None:
        """Under flatten a new optimizer gives its parameters gradients of zero."""
        for p, q in self.pairs:
            if self.flatten and q.requires_grad and q.grad is None:
                assert p.grad is not None
                assert not p.grad.any()
                q.grad = torch.zeros_like(q)

    def has_gradients(self) -> bool:
        return any(p.grad is not None for p, _ in self.pairs)

    def differentiate(self, side: int, seed: int, missing: set[int]) -> Tensor:
        """A backward pass of a linear loss over all parameters but some and the frozen ones; it accumulates."""
        loss = torch.zeros((), requires_grad=True)
        for i, pair in enumerate(self.pairs):
            if i not in missing and pair[side].requires_grad:
                loss = loss + (pair[side] * noise(pair[side].shape, 1000 * i + seed)).sum()
        loss.backward()
        return loss.detach()

    def finish(self, before: list[Tensor | None]) -> None:
        """After a step: what it leaves in our gradients, which are then theirs as well."""
        for (p, q), grad in zip(self.pairs, before, strict=True):
            assert (p.grad is None) == (grad is None)
            if grad is not None:
                assert same_bits(p.grad, torch.zeros_like(grad) if self.zero_grads else grad)
                q.grad = p.grad.detach().clone()

    def gradients(self) -> list[Tensor | None]:
        return [None if p.grad is None else p.grad.detach().clone() for p, _ in self.pairs]

    # Gradients.

    @rule(seed=seeds, missing=subsets)
    def backward(self, seed: int, missing: set[int]) -> None:
        for side in (0, 1):
            self.differentiate(side, seed, missing)

    @rule(index=picks, layout=layouts)
    def replace_gradient(self, index: int, layout: str) -> None:
        for p in self.pick(index):
            if p.grad is not None:
                p.grad = LAYOUTS[layout](p.grad)

    @rule(index=picks, seed=seeds, layout=layouts)
    def assign_gradient(self, index: int, seed: int, layout: str) -> None:
        for p in self.pick(index):
            p.grad = LAYOUTS[layout](noise(p.shape, seed))

    @rule(index=picks)
    def remove_gradient(self, index: int) -> None:
        for p in self.pick(index):
            p.grad = None

    @rule(set_to_none=flags)
    def zero_grad(self, set_to_none: bool) -> None:
        had = [p.grad is not None for p, _ in self.pairs]
        self.ours.zero_grad(set_to_none=set_to_none)
        for (p, q), had_one in zip(self.pairs, had, strict=True):
            if p.grad is None:
                assert not had_one or set_to_none
            else:
                assert self.flatten or not set_to_none
                assert not p.grad.any()
            q.grad = None if p.grad is None else torch.zeros_like(q)

    @rule()
    def model_zero_grad(self) -> None:
        for pair in self.pairs:
            for p in pair:
                p.grad = None

    # Steps.

    def clip_theirs(self) -> None:
        if self.clip:
            nn.utils.clip_grad_norm_([q for _, q in self.pairs], MAX_NORM)

    @rule()
    def step(self) -> None:
        before = self.gradients()
        self.ours.step()
        self.clip_theirs()
        self.theirs.step()
        self.finish(before)

    @rule(seed=seeds, missing=subsets, count=st.integers(1, 8))
    def train(self, seed: int, missing: set[int], count: int) -> None:
        """What users mostly do, so that runs get past the branch."""
        for t in range(count):
            self.backward(seed + t, missing)
            self.step()
            self.zero_grad(set_to_none=False)

    @rule(seed=seeds, missing=subsets)
    def step_with_closure(self, seed: int, missing: set[int]) -> None:
        before: list[Tensor | None] = []

        def ours() -> Tensor:
            loss = self.differentiate(0, seed, missing)
            before.extend(self.gradients())
            return loss

        def theirs() -> Tensor:
            loss = self.differentiate(1, seed, missing)
            self.clip_theirs()
            return loss

        losses = self.ours.step(ours), self.theirs.step(theirs)
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-4, abs=1e-3)
        self.finish(before)

    @rule()
    def step_with_hooks(self) -> None:
        """A pre-hook that halves the gradients, and a post-hook."""
        before: list[Tensor | None] = []
        order: list[str] = []

        @torch.no_grad()
        def halve(opt: torch.optim.Optimizer, *_: Any) -> None:
            order.append("pre")
            for p in (p for group in opt.param_groups for p in group["params"] if p.grad is not None):
                p.grad.mul_(0.5)
            if opt is self.ours:
                before.extend(self.gradients())

        for opt in (self.ours, self.theirs):
            handles = [opt.register_step_pre_hook(halve), opt.register_step_post_hook(lambda *_: order.append("post"))]
            if opt is self.theirs:
                handles.append(opt.register_step_pre_hook(lambda *_: self.clip_theirs()))
            opt.step()
            for handle in handles:
                handle.remove()
        assert order == ["pre", "post"] * 2
        self.finish(before)

    @precondition(lambda self: not (self.flatten or self.offload or self.clip))
    @rule(seed=seeds, missing=subsets)
    def step_during_backward(self, seed: int, missing: set[int]) -> None:
        """Turned on for one iteration, which leaves no gradient behind."""
        with step_in_backward(self.ours):
            self.differentiate(0, seed, missing)
            self.ours.step()
        self.differentiate(1, seed, missing)
        self.theirs.step()
        for p, q in self.pairs:
            assert p.grad is None
            q.grad = None

    @precondition(has_gradients)
    @rule(power=st.integers(-3, 16), bad=st.sampled_from([None, math.inf, math.nan]), index=picks, unscale=flags)
    def step_with_scaler(self, power: int, bad: float | None, index: int, unscale: bool) -> None:
        for opt in (self.ours, self.theirs):
            params = [p for group in opt.param_groups for p in group["params"]]
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**power)
            scaler.scale(torch.zeros(()))
            for p in params:
                if p.grad is not None:
                    p.grad.mul_(2.0**power)
            victim = params[index % len(params)]
            if bad is not None and victim.grad is not None and victim.numel():
                victim.grad[(0,) * victim.dim()] = bad
            if unscale:
                scaler.unscale_(opt)
            if opt is self.ours:
                before = [None if g is None else g if unscale else g * 2.0**-power for g in self.gradients()]
                scaler.step(opt)
            else:
                handle = opt.register_step_pre_hook(lambda *_: self.clip_theirs())
                scaler.step(opt)
                handle.remove()
            scaler.update()
        self.finish(before)
        self.zero_grad(set_to_none=False)  # they are infinite at times

    # Hyperparameters and groups.

    @rule(index=picks, requires_grad=flags)
    def freeze_or_thaw(self, index: int, requires_grad: bool) -> None:
        for p in self.pick(index):
            p.requires_grad_(requires_grad)

    @rule(index=picks, lr=rates, betas=betas, decay=decays, maximize=flags, as_tensor=flags)
    def change_group(
        self, index: int, lr: float, betas: tuple[float, float], decay: float, maximize: bool, as_tensor: bool
    ) -> None:
        for group in self.group(index):
            group.update(betas=betas, weight_decay=decay, maximize=maximize, lr=torch.tensor(lr) if as_tensor else lr)

    @rule(index=picks, lr=rates)
    def change_lr_in_place(self, index: int, lr: float) -> None:
        for group in self.group(index):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    @precondition(lambda self: not self.offload)
    @rule(index=picks, capturable=flags)
    def change_capturable(self, index: int, capturable: bool) -> None:
        self.group(index)[0]["capturable"] = capturable

    @precondition(lambda self: len(self.pairs) < len(SHAPES))
    @rule(lr=rates, decoupled=flags, requires_grad=flags)
    def add_group(self, lr: float, decoupled: bool, requires_grad: bool) -> None:
        count = len(self.pairs)
        for opt in (self.ours, self.theirs):
            p = nn.Parameter(noise(SHAPES[count], count), requires_grad)
            params: Any = [(f"p{count}", p)] if self.named else [p]
            opt.add_param_group({"params": params, "lr": lr, "weight_decay": 0.1, "decoupled_weight_decay": decoupled})
        self.saved = None
        if self.flatten:  # its parameters, and those thawed since, get buffers and gradients of zero
            for p, q in self.pairs:
                q.grad = None if p.grad is None else p.grad.detach().clone()

    # State.

    def both_have_state(self, index: int) -> bool:
        p, q = self.pick(index)
        return bool(self.ours.state.get(p)) and bool(self.theirs.state.get(q))

    @rule(index=picks, name=st.sampled_from(NAMES), assign=flags, steps=st.integers(0, 1000))
    def write_state(self, index: int, name: str, assign: bool, steps: int) -> None:
        if not self.both_have_state(index):
            return
        for opt, p in zip((self.ours, self.theirs), self.pick(index), strict=True):
            entry = opt.state[p]
            value = torch.full_like(entry[name], steps) if name == "step" else entry[name] * 0.5
            if assign:
                entry[name] = value
            else:
                entry[name].copy_(value)

    @rule(index=picks)
    def drop_state(self, index: int) -> None:
        for opt, p in zip((self.ours, self.theirs), self.pick(index), strict=True):
            opt.state.pop(p, None)

    @rule(index=picks)
    def look_at_state(self, index: int) -> None:
        for opt, p in zip((self.ours, self.theirs), self.pick(index), strict=True):
            assert isinstance(opt.state[p], dict)

    @rule()
    def save(self) -> None:
        self.saved = copy.deepcopy((self.ours.state_dict(), self.theirs.state_dict()))

    @precondition(lambda self: self.saved is not None)
    @rule()
    def restore(self) -> None:
        assert self.saved is not None
        for opt, state_dict in zip((self.ours, self.theirs), copy.deepcopy(self.saved), strict=True):
            opt.load_state_dict(state_dict)  # torch's goes on to write into what it has loaded

    @rule(by_torch=flags, capturable=st.sampled_from([None, False, True]))
    def resume(self, by_torch: bool, capturable: bool | None) -> None:
        """From a file, with fresh optimizers over the same parameters; ours through torch's at times."""
        groups = [[{"params": group["params"]} for group in opt.param_groups] for opt in (self.ours, self.theirs)]
        loaded = []
        for opt in (self.ours, self.theirs):
            file = io.BytesIO()
            torch.save(opt.state_dict(), file)
            file.seek(0)
            loaded.append(torch.load(file))
        if by_torch:
            between = torch.optim.RAdam([{"params": group["params"]} for group in self.ours.param_groups])
            between.load_state_dict(loaded[0])
            loaded[0] = between.state_dict()
        if capturable is not None and not self.offload:
            for group in loaded[0]["param_groups"]:
                group["capturable"] = capturable
        names = [group.get("param_names") for group in self.ours.param_groups]
        self.ours, self.theirs = self.kind(groups[0], **self.options), torch.optim.RAdam(groups[1])
        for opt, state_dict in zip((self.ours, self.theirs), loaded, strict=True):
            opt.load_state_dict(state_dict)
        assert [group.get("param_names") for group in self.ours.param_groups] == names
        self.attach()

    @precondition(lambda self: self.copies < 2)
    @rule(by_pickle=flags)
    def duplicate(self, by_pickle: bool) -> None:
        """Copies go on, and what was copied stays as it is; gradients are not copied, as torch has it."""
        self.copies += 1
        both = (self.ours, self.theirs)
        self.ours, self.theirs = pickle.loads(pickle.dumps(both)) if by_pickle else copy.deepcopy(both)

    # Parameters.

    @rule(index=picks, seed=seeds)
    def overwrite_parameter(self, index: int, seed: int) -> None:
        with torch.no_grad():
            for p in self.pick(index):
                p.copy_(noise(p.shape, seed))

    @precondition(lambda self: not self.flatten)
    @rule(index=picks)
    def replace_storage(self, index: int) -> None:
        p, _ = self.pick(index)
        p.data = p.data.clone()

    @precondition(lambda self: not self.flatten)
    @rule(seed=seeds)
    def transpose_in_memory(self, seed: int) -> None:
        """As a model that goes channels_last; with its next step, whose launch finds it."""
        for p, _ in self.pairs:
            if p.dim() == 2:
                p.data = p.data.t().contiguous().t() if p.is_contiguous() else p.data.contiguous()
        self.train(seed, set(), 1)

    # What always holds.

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "ours"):
            return
        for p, q in self.pairs:
            close(p, q)
            a, b = self.ours.state.get(p), self.theirs.state.get(q)
            if not b:  # a first step that was skipped leaves zeros here
                assert not a or not any(a[name].any() for name in NAMES)
                continue
            assert a is not None
            assert list(a) == list(b)
            assert a["step"] == b["step"]
            for name in NAMES[1:]:
                close(a[name], b[name])

    @invariant()
    def same_gradients(self) -> None:
        if not hasattr(self, "ours"):
            return
        for p, q in self.pairs:
            assert (p.grad is None) == (q.grad is None)
            if p.grad is not None:
                assert same_bits(p.grad, q.grad)


def close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the largest value: float32 rounding, added up over the steps of a run."""
    if theirs.numel():
        bound = 1e-5 * max(theirs.detach().abs().max().item(), 0.1)
        error = (ours.detach() - theirs.detach()).abs().max().item()
        assert error <= bound, f"{error:.3g} > {bound:.3g}"


SETTINGS = settings(
    max_examples=200,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_random_sequences() -> None:
    run_state_machine_as_test(Training, settings=SETTINGS)


# The negative controls: the same machine finds these within its budget.


class CountsSkippedSteps(FusedRAdam):
    def step(self, closure: Any = None) -> Any:
        result = super().step(closure)
        found = getattr(self, "found_inf", None)
        if found is not None and found:
            for entry in filter(None, self.state.values()):
                entry["step"] += 1.0
        return result


class ScalesNothing(FusedRAdam):
    def step(self, closure: Any = None) -> Any:
        if hasattr(self, "grad_scale"):
            self.grad_scale = None
        return super().step(closure)


class ForgetsTheStateOfCopies(FusedRAdam):
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for entry in filter(None, self.state.values()):
            entry["exp_avg"].zero_()


BROKEN = [CountsSkippedSteps, ScalesNothing, ForgetsTheStateOfCopies]


def found(kind: type[FusedRAdam]) -> bool:
    """Whether the machine finds that something is wrong, without then looking for the shortest way there."""
    machine = type("Broken", (Training,), {"kind": kind})
    try:
        run_state_machine_as_test(
            machine, settings=settings(SETTINGS, phases=[Phase.generate], print_blob=False, report_multiple_bugs=False)
        )
    except AssertionError:
        return True
    return False


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_broken_optimizer_is_found(kind: type[FusedRAdam]) -> None:
    assert found(kind)


@pytest.fixture
def counts_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of a rows operator that the host does not read, as on a device that it would have to wait for."""
    monkeypatch.setattr("radam_fused.state.step_counts.readable", lambda device: False)


@pytest.mark.usefixtures("counts_as_on_a_gpu")
def test_counts_that_the_host_does_not_read() -> None:
    run_state_machine_as_test(Training, settings=SETTINGS)


@pytest.mark.usefixtures("counts_as_on_a_gpu")
def test_classes_that_are_not_split_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that once took the same steps, and take others while only a rows operator counts."""
    monkeypatch.setattr(StepCounts, "split", lambda self, absent: self._classes)
    assert found(FusedRAdam)


def test_ignored_edits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were an entry not to tell its bucket, and addresses not looked at, replaced moments would not be stepped."""
    monkeypatch.setattr(ParameterState, "release_owner", lambda self: None)
    monkeypatch.setattr(ShownViews, "intact", lambda self, thoroughly=False: True)
    assert found(FusedRAdam)


def test_counts_of_failed_steps_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the launch finds other strides and is tried again."""
    monkeypatch.setattr(DeviceScalars, "undo", lambda self, bucket, plan: None)
    assert found(FusedRAdam)


def test_parameters_that_do_not_come_back_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transfer, "up", lambda self, slot, copies: None)
    assert found(FusedRAdam)


def test_hooks_that_outlast_their_iteration_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StepInBackward, "remove", lambda self: None)
    assert found(FusedRAdam)
