"""The pytest-benchmark suite of whole training steps: one row per model and optimizer (see test_step.py)."""

from __future__ import annotations

from typing import Any

import pytest

from bench.harness.replay_timer import REPLAY_TIMER, replay
from bench.harness.session import Run
from bench.harness.training_steps import MODELS, OURS, TRAINED_BASELINES, Trained, train


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    run = Run.of(metafunc.config)
    if "model" in metafunc.fixturenames:
        metafunc.parametrize("model", run.models, scope="module")
    if "optimizer" in metafunc.fixturenames:
        metafunc.parametrize("optimizer", [*OURS, *(name for name in run.baselines if name in TRAINED_BASELINES)])


@pytest.fixture(scope="module")
def trained(model: str, pytestconfig: pytest.Config) -> Trained:
    run = Run.of(pytestconfig)
    with run.progress(MODELS[model].title) as progress:
        result = train(MODELS[model], run.baselines, run.plan, progress)
    run.trained.append(result)
    return result


@pytest.mark.benchmark(timer=REPLAY_TIMER)
def test_training_step(benchmark: Any, trained: Trained, model: str, optimizer: str) -> None:
    if optimizer in trained.skipped:
        pytest.skip(trained.skipped[optimizer])
    benchmark.group = trained.model.title
    replay(benchmark, trained.trainings[optimizer].whole)


def test_losses_are_those_of_torch(trained: Trained, model: str) -> None:
    if trained.right is None:
        pytest.skip("torch.optim.RAdam(foreach) did not take part")
    assert trained.right, (trained.differences(), {name: t.losses for name, t in trained.trainings.items()})
