"""Random models under random sequences of everything users do: the bits of ``reference``, or an error and no change.

``make properties`` tries 10,000 examples; this is its short form, always with the same ones.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="requirements/dev.txt has it")

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from radam_fused import FusedRAdam
from tests.properties.faults import Faults

SETTINGS = settings(
    max_examples=60,
    stateful_step_count=20,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def test_random_models_and_sequences() -> None:
    run_state_machine_as_test(Faults, settings=SETTINGS)


class ForgetsWhatItLoads(FusedRAdam):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for entry in filter(None, self.state.values()):
            entry["step"].zero_()


@pytest.mark.parametrize("kind", [ForgetsWhatItLoads])
def test_a_broken_optimizer_is_found(kind: type[FusedRAdam]) -> None:
    """The negative control, without then looking for the shortest way there."""
    machine = type("Broken", (Faults,), {"kind": kind})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            machine, settings=settings(SETTINGS, phases=[Phase.generate], print_blob=False, report_multiple_bugs=False)
        )
