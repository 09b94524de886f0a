"""What a step costs the CPU, in counts that no machine changes: instructions and bytes of an element.

Read from the machine code of the extension as it was compiled here, on x86 with AVX-512 kernels in it.
"""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

import radam_fused
from tests.codegen.machine_loops import Function, functions, loaded, stored

LIBRARY = Path(radam_fused.__file__).parent / "_C.abi3.so"
BLOCK = 64
"""Elements that a turn of the main loop takes (csrc/cpu/prefetch.h)."""

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 machine code")


@pytest.fixture(scope="module")
def turns() -> list[list[str]]:
    """One turn of each version of the main loop of fp32 with AVX-512, the shortest first."""
    if shutil.which("objdump") is None:
        pytest.fail("objdump (binutils) comes with every g++; install it")
    [function] = functions(LIBRARY, "update_avx512<float, float, true, false>(")
    found = [turn for turn in function.loops(r"vsqrtps.*%zmm") if any("prefetch" in text for text in turn)]
    assert found
    return found


def count(turn: list[str], *names: str) -> int:
    return sum(text.startswith(names) for text in turn)


def test_a_turn_is_a_block(turns: list[list[str]]) -> None:
    for turn in turns:
        assert count(turn, "vsqrtps") == count(turn, "vdivps") == BLOCK // 16


def test_bytes_of_an_element(turns: list[list[str]]) -> None:
    """Four arrays read and three written, nothing else: 28 bytes."""
    for turn in turns:
        assert 64 * len(loaded(turn, "zmm")) / BLOCK == 16
        assert 64 * len(stored(turn, "zmm")) / BLOCK == 12


def test_instructions_of_an_element(turns: list[list[str]]) -> None:
    """1.7 to 2.0 with GCC 12, of them 1.0 to 1.1 the contract's own arithmetic and 0.25 prefetches."""
    for turn in turns:
        assert len(turn) / BLOCK <= 2.5


def test_a_request_a_line_and_array(turns: list[list[str]]) -> None:
    for turn in turns:
        assert count(turn, "prefetch") == 4 * BLOCK * 4 // 64


def test_low_precision_stays_in_vectors() -> None:
    """Neighbours are put in place by permutations, not one by one; random numbers take two products a round and vector.

    The negative control is the function for other machines: one product by one, and no vector of 512 bits.
    """
    [step] = functions(LIBRARY, "avx512::(anonymous namespace)::update_chunk(")
    assert count(step.code, "vsqrtps", "vdivps") > 0
    assert count(step.code, "vgather", "vpgather", "vscatter", "vpscatter", "vpinsr", "vpextr") == 0
    [fill] = [f for f in functions(LIBRARY, "avx512::RandomBits::fill<4>(") if len(f.code) > 100]
    products = [text for text in fill.code if text.startswith("vpmuludq")]
    assert all("zmm" in text for text in products)
    assert 4 * (2 * 10 - 1) <= len(products) <= 4 * 2 * 10  # the step's own product is the same for all
    assert count(fill.code, "imul", "mul ", "mulx") == 0
    [other] = functions(LIBRARY, "anonymous namespace)::update_baseline(void*, void const*, int")
    assert count(other.code, "imul", "mul ", "pmuludq") > 0
    assert not any("zmm" in text for text in other.code)


def test_loops_are_read_as_they_run() -> None:
    """The negative control, by hand: a loop with a detour, of which the shortest way counts."""
    listing = """
    10:\tvmovups 0x0(%rax),%zmm1
    14:\tje     20 <f+0x10>
    18:\tvmovups 0x40(%rbx,%rcx,4),%zmm2
    20:\tvsqrtps %zmm1,%zmm1
    24:\tvmovups %zmm1,0x0(%rax)
    28:\tjne    10 <f>
    2c:\tvsqrtps %zmm3,%zmm3
    30:\tret
    """
    function = Function(listing)
    [turn] = function.loops("vsqrtps")
    assert [text.split()[0] for text in turn] == ["vsqrtps", "vmovups", "jne", "vmovups", "je"]
    assert loaded(turn, "zmm") == {"0x0(%rax)"}
    assert stored(turn, "zmm") == ["0x0(%rax)"]
    assert loaded(function.code, "zmm") == {"0x0(%rax)", "0x40(%rbx,%rcx,4)"}
