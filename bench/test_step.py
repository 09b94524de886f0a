"""The pytest-benchmark suite: one row a case and contestant.

pytest-benchmark would run one contestant after another, and what is wanted are rounds in which they take turns
(`bench.measure`). So a fixture measures a case whole, and each test plays its contestant's times back to
pytest-benchmark through a clock, `Tape`: statistics, groups and files (``--benchmark-json``, ``--benchmark-compare``)
are pytest-benchmark's, as of any other suite.

``python -m bench`` runs this file with the options of its command line; ``python -m pytest bench`` with the defaults.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.cases import CASES
from bench.measure import Measurement, NotEnoughMemory, measure
from bench.peers import CONTESTANTS
from bench.run import Run


class Tape:
    """A timer that plays durations back: read before and after each round, it advances by what the round had taken."""

    __name__ = "interleaved_rounds"

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, durations: list[float]) -> None:
        self._readings = (reading for duration in durations for reading in (0.0, duration))

    def __call__(self) -> float:
        return next(self._readings)


TAPE = Tape()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    run = Run.of(metafunc.config)
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", run.cases, scope="module")
    if "contestant" in metafunc.fixturenames:
        metafunc.parametrize("contestant", run.contestants)


@pytest.fixture(scope="module")
def run(pytestconfig: pytest.Config) -> Run:
    return Run.of(pytestconfig)


@pytest.fixture(scope="module")
def measured(case: str, run: Run) -> Measurement:
    contestants = [CONTESTANTS[name] for name in run.contestants]
    try:
        with run.progress(CASES[case].title) as progress:
            result = measure(CASES[case], contestants, run.plan, progress)
    except NotEnoughMemory as reason:
        run.skipped[case] = str(reason)
        pytest.skip(str(reason))
    run.measurements.append(result)
    return result


@pytest.mark.benchmark(timer=TAPE)
def test_step(benchmark, measured: Measurement, case: str, contestant: str) -> None:
    if contestant in measured.absent:
        pytest.skip(measured.absent[contestant])
    benchmark.group = measured.case.title
    durations = measured.seconds[contestant]
    TAPE.load(durations)
    benchmark.pedantic(lambda: None, rounds=len(durations))


def test_parameters_agree_with_torch(measured: Measurement, case: str) -> None:
    if measured.agreement.agrees is None:
        pytest.skip("no torch.optim.RAdam among the contestants")
    assert measured.agreement.agrees, measured.agreement
