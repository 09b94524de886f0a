"""Whether a bucket still fits the groups and the state, and which gradients a step takes of it."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from radam_fused.state.bucket import Bucket
from radam_fused.state.membership import is_current, is_unused, without_absent
from radam_fused.state.tracked_dict import ParameterState


@pytest.fixture
def bucket() -> Bucket:
    """Of two parameters, the second without an entry yet."""
    return Bucket([torch.zeros(5), torch.zeros(7)], [0, 0])


def shown(bucket: Bucket) -> dict[Tensor, Any]:
    entry = ParameterState(bucket.state(0), bucket)
    bucket.entries[0] = weakref.ref(entry)
    return {bucket.params[0]: entry}


def test_a_bucket_is_current_while_its_entries_are_there(bucket: Bucket) -> None:
    state = shown(bucket)
    assert is_current(bucket, state, [0, 0])
    assert is_current(bucket, {**state, bucket.params[1]: {"note": 1}}, [0, 0])  # a user's things alone


def test_an_entry_that_is_gone_or_another(bucket: Bucket) -> None:
    state = shown(bucket)
    assert not is_current(bucket, {}, [0, 0])
    assert not is_current(bucket, {bucket.params[0]: dict(state[bucket.params[0]])}, [0, 0])


def test_a_parameter_without_an_entry_that_gets_state_or_leaves_its_group(bucket: Bucket) -> None:
    state = shown(bucket)
    assert not is_current(bucket, {**state, bucket.params[1]: {"step": 1.0}}, [0, 0])
    assert not is_current(bucket, state, [0, -1])
    assert is_current(bucket, state, [-1, 0])  # state of a parameter in no group stays


def test_a_bucket_is_unused_where_no_group_has_its_parameters_and_none_was_stepped(bucket: Bucket) -> None:
    assert is_unused(bucket, [-1, -1])
    assert not is_unused(bucket, [0, -1])
    assert not is_unused(bucket, [-1, 0])
    bucket.counts.assign(1, 1.0)
    assert not is_unused(bucket, [-1, -1])


def test_a_step_leaves_out_what_is_in_no_group() -> None:
    bucket = Bucket([torch.zeros(n) for n in (1, 2, 3, 4)], [0, 0, 0, 0])
    bucket.set_groups([0, -1, 0, 0])
    grads = [torch.ones(n) for n in (1, 2, 4)]  # the third has none
    kept, missing = without_absent(bucket, grads, [2])
    assert [grad.numel() for grad in kept] == [1, 4]
    assert missing == [1, 2]
