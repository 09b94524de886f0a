"""The pages of docs/ that users begin with: every Python block runs, and arithmetic is computed again."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from radam_fused import FusedRAdam
from radam_fused.rectification import rectification
from tests.support.paths import ROOT

PAGES = ("getting-started", "migration", "models", "options", "planning", "faq")
ELSEWHERE = {"trainers": "tests/trainers"}
"""Pages whose blocks need packages that these tests do without, and the tests that run them."""
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SIZES = (124_439_808, 10**9, 7 * 10**9, 70 * 10**9)
MODEL_ROW = re.compile(r"^\| (float32|bfloat16) \| (?:`(.+?)`)? ?\| (.+) \|$", re.MULTILINE)


def text(page: str) -> str:
    return (ROOT / "docs" / f"{page}.md").read_text()


def given(page: str) -> dict[str, Any]:
    """What a page's blocks take as there."""
    model = nn.Linear(2, 2)
    return {"optimizer": FusedRAdam(model.parameters())} if page == "options" else {}


def run(page: str, markdown: str) -> int:
    """Runs the Python blocks of a page one after the other, in one namespace; the number of them."""
    names = given(page)
    blocks = BLOCK.findall(markdown)
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"docs/{page}.md, block {number}", "exec"), names)
    return len(blocks)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page: str) -> None:
    assert run(page, text(page)) == text(page).count("```python") > 0


def test_no_page_with_blocks_is_left_out() -> None:
    """The README's have a test of their own."""
    with_blocks = {path.stem for path in (ROOT / "docs").glob("*.md") if "```python" in path.read_text()}
    assert with_blocks == {*PAGES, *ELSEWHERE}
    assert all((ROOT / folder).is_dir() for folder in ELSEWHERE.values())


ANY_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(markdown: str) -> list[str]:
    """The commands of a page's blocks without a language, without comments."""
    blocks = [block for language, block in ANY_BLOCK.findall(markdown) if not language]
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def wrong_commands(markdown: str) -> list[str]:
    """Commands that name no target of the Makefile, no option of pip that tests install with, or that fail."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pip = {"pip install 'setuptools>=77,<82' wheel ninja", "pip install --no-build-isolation ."}
    found = []
    for command in commands(markdown):
        if command.startswith("make "):
            wrong = command.split()[1] not in targets
        elif command.startswith("python -m radam_fused"):
            ran = subprocess.run(
                [sys.executable, *shlex.split(command)[1:]], cwd=ROOT, capture_output=True, check=False
            )
            wrong = ran.returncode != 0
        else:
            wrong = command not in pip
        found += [command] if wrong else []
    return found


@pytest.mark.long
def test_commands_of_the_first_pages_run() -> None:
    pages = [(ROOT / "README.md").read_text(), text("getting-started")]
    assert [len(commands(page)) for page in pages] == [5, 2]
    assert [wrong_commands(page) for page in pages] == [[], []]
    inline = "\n".join(re.findall(r"`(python -m radam_fused plan [^`]+)`", pages[0]))
    assert inline
    assert wrong_commands(f"```\n{inline}\n```\n") == []
    wrong = ["make nothing-such", "python -m radam_fused plan --gpus no", "pip install nothing"]
    assert wrong_commands("```\n" + "\n".join(wrong) + "\n```\n") == wrong


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
    lengths = {}
    for beta2, first, at_100, to_90, to_98 in rows:

        def steps_to(factor: float, beta2: float = float(beta2)) -> int:
            return next(t for t in range(1, 10_000) if (rectification(t, beta2) or 0.0) >= factor)

        assert steps_to(1e-9) == int(first)
        assert f"{rectification(100, float(beta2)):.2f}" == at_100
        assert [steps_to(0.9), steps_to(0.98)] == [int(cell.replace(",", "")) for cell in (to_90, to_98)]
        lengths[beta2] = to_98
    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"after {lengths['0.95']} steps at β2 = 0.95 and after {lengths['0.999']} steps at β2 = 0.999" in readme


class ForeachCalls(TorchDispatchMode):
    """Counts torch's foreach operators over parameters, and the arrays that these read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.arrays = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        lists = {id(arg[0]) for arg in args if isinstance(arg, (list, tuple)) and isinstance(arg[0], torch.Tensor)}
        if "_foreach_" in func.name() and lists and args[0][0].numel() > 1:
            self.kernels += 1
            self.arrays += len(lists) + 1  # each of them writes one
        return out


def test_kernels_of_torch_s_step() -> None:
    """Nine with 22 reads and writes, as docs/differences.md says."""
    p = nn.Parameter(torch.ones(8))
    opt = torch.optim.RAdam([p], foreach=True)
    for _ in range(7):
        p.grad = torch.ones(8)
        with ForeachCalls() as calls:
            opt.step()
    assert (calls.kernels, calls.arrays) == (9, 22)
    assert "9 kernels with 22 reads and writes: 88 bytes per element" in text("differences")


def test_the_readme_s_block_runs() -> None:
    blocks = BLOCK.findall((ROOT / "README.md").read_text())
    assert len(blocks) == 1
    names: dict[str, Any] = {"model": nn.Linear(2, 2)}
    exec(blocks[0], names)
    assert names["optimizer"].param_groups[0]["decoupled_weight_decay"]


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
