"""Which parameters of a bucket have taken equally many steps, where only a device knows how many."""

from __future__ import annotations

import pytest
import torch

from radam_fused.state import step_counts
from radam_fused.state.step_counts import StepCounts


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> StepCounts:
    """Of four segments after 3, 3, 5 and 5 steps; the CPU plays a device whose values the host does not wait for."""
    made = StepCounts(4)
    for index, count in enumerate((3.0, 3.0, 5.0, 5.0)):
        made.assign(index, count)
    monkeypatch.setattr(step_counts, "readable", lambda device: False)
    made.move_to(torch.device("cpu"), set())
    return made


def groups(classes: list[int]) -> list[list[int]]:
    return [[i for i, one in enumerate(classes) if one == number] for number in dict.fromkeys(classes)]


def test_classes_begin_with_what_the_host_knew(counts: StepCounts) -> None:
    assert (counts.on_device, counts.on_host) == (True, False)
    assert groups(counts.classes(set())) == [[0, 1], [2, 3]]


def test_a_class_is_split_where_a_step_takes_a_part_of_it(counts: StepCounts) -> None:
    assert groups(counts.classes({1})) == [[0], [1], [2, 3]]
    assert groups(counts.classes({3})) == [[0], [1], [2], [3]]
    assert counts.classes(set()) == [0, 1, 2, 3]  # numbers from 0, in the order of the segments


def test_a_class_that_is_left_out_whole_stays_one(counts: StepCounts) -> None:
    assert groups(counts.classes({2, 3})) == [[0, 1], [2, 3]]


def test_segments_missing_from_the_step_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    made = StepCounts(3)
    monkeypatch.setattr(step_counts, "readable", lambda device: False)
    made.move_to(torch.device("cpu"), {2})
    assert groups(made.classes(set())) == [[0, 1], [2]]


def test_replays_split_as_steps_do(counts: StepCounts) -> None:
    assert counts.expect_replays(set())
    assert groups(counts.classes(set())) == [[0, 1], [2, 3]]
    assert counts.expect_replays({1})
    assert groups(counts.classes(set())) == [[0], [1], [2, 3]]


def test_a_written_count_is_taken_over_and_replays_are_split_again(counts: StepCounts) -> None:
    counts.expect_replays({1})
    counts.shown[2] = 3.0
    assert counts.written()
    assert not counts.expect_replays({3})  # a capture cannot read what was written
    counts.honour()
    assert not counts.written()
    assert groups(counts.classes(set())) == [[0, 2], [1], [3]]


def test_replays_of_counts_that_the_host_reads_split_nothing() -> None:
    made = StepCounts(2)
    assert made.expect_replays({1})
    assert made.classes(set()) == [0, 0]
    made.assign(1, 4.0)
    assert made.classes(set()) == [0, 4]


@pytest.mark.parametrize("value", [-1.0, 2.5, float("inf"), float("nan")])
def test_a_count_that_is_none_is_refused_and_nothing_is_taken_over(value: float) -> None:
    made = StepCounts(3)
    made.shown[0], made.shown[2] = 7.0, value
    words = f"optimizer.state: a 'step' is {value!r}: must be a whole number, at least 0"
    with pytest.raises(ValueError, match=f"^{words}$"):
        made.honour()
    assert made.taken.tolist() == [0.0, 0.0, 0.0]
    made.shown[2] = 0.0
    made.honour()
    assert made.taken.tolist() == [7.0, 0.0, 0.0]


def test_a_step_that_was_not_taken_is_taken_back(counts: StepCounts) -> None:
    counts.taken += 1.0
    counts.shown.copy_(counts.taken)
    counts.add(None)
    counts.take_back(torch.tensor([1.0, 0.0, 1.0, 0.0]))
    assert counts.taken.tolist() == [3.0, 4.0, 5.0, 6.0]
    assert counts.shown.tolist() == [3.0, 4.0, 5.0, 6.0]
    assert not counts.written()


def test_the_exact_count_behind_what_is_shown() -> None:
    """A float32 has no 2^24 + 1, so it shows 2^24; a written value counts as it is."""
    made = StepCounts(2)
    made.assign(1, 2.0**24 + 1)
    assert made.exact(1, made.shown[1]) == 2.0**24 + 1
    assert made.exact(1, 2.0**24) == 2.0**24 + 1
    assert made.exact(1, torch.tensor(9.0)) == 9.0
    assert made.exact(0, 0) == 0.0
    assert (made.begun(0), made.begun(1)) == (False, True)


def test_only_a_device_knows_whether_a_step_was_taken(counts: StepCounts) -> None:
    counts.taken.zero_()
    assert counts.begun(0)
