"""The pages of docs/ that users begin with: every Python block runs, and arithmetic is computed again."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from radam_fused import FusedRAdam
from radam_fused.rectification import rectification
from tests.support.paths import ROOT

PAGES = ("getting-started", "migration", "models", "planning", "faq")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SIZES = (124_439_808, 10**9, 7 * 10**9, 70 * 10**9)
MODEL_ROW = re.compile(r"^\| (float32|bfloat16) \| (?:`(.+?)`)? ?\| (.+) \|$", re.MULTILINE)


def text(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text()


def run(page: str, markdown: str) -> int:
    """Runs the Python blocks of a page one after the other, in one namespace; the number of them."""
    names: dict[str, Any] = {}
    blocks = BLOCK.findall(markdown)
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"docs/{page}.md, block {number}", "exec"), names)
    return len(blocks)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page: str) -> None:
    assert run(page, text(page)) == text(page).count("```python") > 0


def test_a_wrong_block_is_found() -> None:
    """The negative control."""
    with pytest.raises(AssertionError):
        run("x", "a\n```python\nx = 1\n```\nb\n```python\nassert x == 2\n```\n")


def written(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def state_bytes(dtype: torch.dtype, options: str) -> float:
    """Bytes of state a parameter, measured on one large tensor."""
    p = nn.Parameter(torch.zeros(1024, 1024, dtype=dtype))
    p.grad = torch.ones_like(p)
    opt = FusedRAdam([p], **eval(f"dict({options})", {"torch": torch}))
    opt.step()
    state = (value for name, value in opt.state[p].items() if name != "step")
    return sum(value.numel() * value.element_size() for value in state) / p.numel()


def test_gigabytes_are_those_of_the_tensors() -> None:
    """Memory on one device, on each of eight, and what a step moves, for seven choices of options."""
    rows = MODEL_ROW.findall(text("models"))
    assert len(rows) == 21
    for number, (dtype, options, cells) in enumerate(rows):
        width = getattr(torch, dtype).itemsize
        state = state_bytes(getattr(torch, dtype), options)
        whole = 2 * width + state
        each = (whole, whole / 8, 3 * width + 2 * state)[number // 7]
        assert cells.split(" | ") == [written(size * each / 1e9) for size in SIZES], (dtype, options)


def test_the_recommended_gigabytes_are_in_the_tables() -> None:
    recommended = re.findall(r"`(.*?)`: ([\d.]+) GB", text("models"))
    assert len(recommended) == 2
    cells = {(options, cell) for _, options, row in MODEL_ROW.findall(text("models")) for cell in row.split(" | ")}
    assert set(recommended) <= cells


def test_warm_ups_have_the_length_that_the_page_says() -> None:
    rows = re.findall(r"^\| (0\.9+5?) \| (\d+) \| ([\d.]+) \| ([\d,]+) \| ([\d,]+) \|$", text("faq"), re.MULTILINE)
    assert [row[0] for row in rows] == ["0.95", "0.99", "0.999"]
    for beta2, first, at_100, to_90, to_98 in rows:

        def steps_to(factor: float, beta2: float = float(beta2)) -> int:
            return next(t for t in range(1, 10_000) if (rectification(t, beta2) or 0.0) >= factor)

        assert steps_to(1e-9) == int(first)
        assert f"{rectification(100, float(beta2)):.2f}" == at_100
        assert [steps_to(0.9), steps_to(0.98)] == [int(cell.replace(",", "")) for cell in (to_90, to_98)]


def test_an_apex_checkpoint_is_refused() -> None:
    """apex keeps the step count in the parameter group; docs/migration.md says that such a checkpoint does not load."""
    p = nn.Parameter(torch.ones(4))
    opt = FusedRAdam([p])
    state = {"state": {0: {"exp_avg": torch.ones(4), "exp_avg_sq": torch.ones(4)}}}
    group = {"lr": 1e-3, "bias_correction": True, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "step": 3}
    with pytest.raises((ValueError, KeyError), match="step"):
        opt.load_state_dict(state | {"param_groups": [group | {"params": [0]}]})


def test_links_of_the_pages_lead_somewhere() -> None:
    """Offline, and without mkdocs, which `make docs` has check them strictly."""
    for path in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "SECURITY.md", ROOT / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)\s#]+)", path.read_text()):
            if not re.match(r"https?:", link):
                assert (path.parent / link).exists(), f"{path.name}: {link}"
