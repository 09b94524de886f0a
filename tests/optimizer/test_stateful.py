"""Random sequences of what users do, on FusedRAdam and on torch.optim.RAdam with torch's own utilities."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="requirements/dev.txt has it")

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from radam_fused import FusedRAdam
from radam_fused.backends.staging import Transfer
from radam_fused.gradient_release import StepInBackward
from radam_fused.state.step_counts import StepCounts
from radam_fused.state.tracked_dict import ParameterState
from radam_fused.state.views import PublishedViews
from radam_fused.step.scalars import DeviceScalars
from tests.support.random_edits import Training

pytestmark = pytest.mark.filterwarnings("ignore:grad and param do not obey the gradient layout")  # on purpose

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
    """Counts of a scalars operator that the host does not read, as on a device that it would have to wait for."""
    monkeypatch.setattr("radam_fused.state.step_counts.readable", lambda device: False)


@pytest.mark.long
@pytest.mark.usefixtures("counts_as_on_a_gpu")
def test_counts_that_the_host_does_not_read() -> None:
    run_state_machine_as_test(Training, settings=SETTINGS)


@pytest.mark.usefixtures("counts_as_on_a_gpu")
def test_classes_that_are_not_split_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that once took the same steps, and take others while only a scalars operator counts."""
    monkeypatch.setattr(StepCounts, "split", lambda self, absent: self._classes)
    assert found(FusedRAdam)


def test_ignored_edits_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """If entries did not report to their bucket, and addresses were not compared, replaced moments would be lost."""
    monkeypatch.setattr(ParameterState, "release_owner", lambda self: None)
    monkeypatch.setattr(PublishedViews, "intact", lambda self, thoroughly=False: True)
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
