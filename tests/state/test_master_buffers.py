"""What is stored of master weights, from an entry in each form, or from the parameter alone."""

from __future__ import annotations

import pytest
import torch

from radam_fused.state.codec import master_value, write_master
from tests.support.helpers import same_bits

VALUE = torch.tensor([1.0009765, -3.1415927, 0.0, 65504.0])


def stored(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(len(VALUE), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.bfloat16], ids=str)
def test_a_form_is_made_of_each_other(dtype: torch.dtype) -> None:
    """float32, low bits and compensation of a bfloat16 parameter; the value that they stand for stays."""
    param = VALUE.bfloat16()
    entry = {"master": VALUE}
    made = stored(dtype)
    write_master(made, param, entry)
    name = {torch.float32: "master", torch.int16: "master_low", torch.bfloat16: "compensation"}[dtype]
    found = master_value({name: made}, param)
    assert found is not None
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, VALUE, rtol=0.0 if dtype != torch.bfloat16 else 2**-15, atol=0.0)
    again = stored(dtype)
    write_master(again, param, {name: made})
    assert same_bits(again, made)


def test_without_an_entry_the_parameter_counts() -> None:
    param = VALUE.bfloat16()
    for entry in (None, {}):
        master, compensation = stored(torch.float32), stored(torch.bfloat16)
        write_master(master, param, entry)
        write_master(compensation, param, entry)
        assert torch.equal(master, param.float())
        assert compensation.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("value", "param"), [(float("inf"), 1.0), (1.0, float("inf")), (float("nan"), 1.0), (float("inf"), float("inf"))]
)
def test_no_compensation_where_one_of_both_is_not_finite(value: float, param: float) -> None:
    made = torch.ones(2, dtype=torch.bfloat16)
    write_master(made, torch.tensor([param, 1.0]).bfloat16(), {"master": torch.tensor([value, 1.0 + 2**-10])})
    assert made.tolist() == [0.0, 2**-10]


def test_widened_bits_of_a_checkpoint_are_taken_as_they_are() -> None:
    low = torch.tensor([-5, 7, 0, 3], dtype=torch.int32)
    made = stored(torch.int16)
    write_master(made, VALUE.bfloat16(), {"master_low": low})
    assert made.tolist() == low.tolist()
    assert master_value({}, VALUE.bfloat16()) is None
    assert master_value({"master_low": low}, VALUE.half()) is None  # these are bits of a bfloat16
