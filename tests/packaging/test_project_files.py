"""Workflows, templates, citation, changelog and requirements: what people look for beside the code. Checked offline."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from radam_fused import FusedRAdam
from tests.packaging.builds import VERSION
from tests.support.paths import ROOT
from tests.tools import table

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TEMPLATES = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
KINDS = {"markdown": {"value"}, "textarea": {"label"}, "input": {"label"}, "dropdown": {"label", "options"}}
"""Kinds of fields of an issue template, and the attributes that GitHub requires of each."""


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def wrong_in_workflow(workflow: dict[Any, Any]) -> list[str]:
    """What is missing of a workflow: its keys, the keys of its jobs and steps, and the make targets that it runs."""
    # YAML 1.1 reads the key `on` as true.
    found = [f"no {key}" for key in ("name", "permissions", "jobs") if key not in workflow]
    found += [] if True in workflow or "on" in workflow else ["no on"]
    for name, job in workflow.get("jobs", {}).items():
        found += [f"{name}: no {key}" for key in ("runs-on", "steps") if not job.get(key)]
        for step in job.get("steps", ()):
            if ("uses" in step) == ("run" in step):
                found.append(f"{name}: a step has either uses or run")
            targets = re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))
            found += [f"{name}: no target {target}" for target in targets if target not in TARGETS]
    return found


def wrong_in_template(template: dict[str, Any]) -> list[str]:
    """What GitHub would refuse in an issue template."""
    found = [f"no {key}" for key in ("name", "description", "body") if not template.get(key)]
    seen: set[str] = set()
    for field in template.get("body", ()):
        kind, attributes = field.get("type"), field.get("attributes", {})
        if kind not in KINDS:
            found.append(f"no kind {kind}")
            continue
        found += [f"{field.get('id')}: no {key}" for key in sorted(KINDS[kind] - set(attributes))]
        if field.get("id") in seen:
            found.append(f"two fields {field['id']}")
        seen.add(field.get("id"))
        if not all(isinstance(option, str) for option in attributes.get("options", ())):
            found.append(f"{field.get('id')}: an option is no string")
    return found


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows(path: Path) -> None:
    assert wrong_in_workflow(read(path)) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_issue_templates(path: Path) -> None:
    assert wrong_in_template(read(path)) == []


def test_what_is_wrong_is_found() -> None:
    """The negative controls."""
    step = {"run": "make nothing-such", "uses": "x"}
    workflow = {"name": "x", "jobs": {"a": {"runs-on": "y", "steps": [step]}, "b": {"steps": []}}}
    assert len(wrong_in_workflow(workflow)) == 6
    fields = [{"type": "dropdown", "id": "a", "attributes": {"label": "x", "options": [True]}}]
    fields += [{"type": "textarea", "id": "a", "attributes": {}}, {"type": "?"}]
    assert len(wrong_in_template({"name": "x", "body": fields})) == 5


def test_ci_runs_what_every_change_must_pass() -> None:
    """The workflow has the targets of .ci/run that need no CUDA."""

    def targets(path: str) -> set[str]:
        return set(re.findall(r"\bmake ([a-z]+)\b(?!-)", (ROOT / path).read_text()))

    assert {"lint", "docs", "trainers", "wheel", "test", "tools", "paper"} <= targets(".ci/run")
    assert targets(".ci/run") <= targets(".github/workflows/ci.yml")
    assert [path.stem for path in WORKFLOWS] == ["ci", "wheels"]
    assert len(TEMPLATES) == 2
    assert (ROOT / ".github" / "pull_request_template.md").read_text().count("- [ ]") >= 3


def test_the_site_is_built_strictly() -> None:
    """With --quiet mkdocs counts no warnings, and a link that leads nowhere passes."""
    (command,) = re.findall(r"-m mkdocs (.+)", (ROOT / "Makefile").read_text())
    assert command == "build --strict"


def test_citation_and_changelog_have_the_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == VERSION
    versions = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    released = versions[1:]
    assert versions[0] == "Unreleased"
    assert released
    assert released == sorted(released, reverse=True)
    assert VERSION.partition(".dev")[0] not in released or ".dev" not in VERSION


def pins(name: str) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements" / name).read_text().splitlines())
    return [line for line in lines if line]


@pytest.mark.parametrize("path", sorted((ROOT / "requirements").glob("*.txt")), ids=lambda path: path.stem)
def test_requirements_are_exact(path: Path) -> None:
    assert pins(path.name)
    assert [line for line in pins(path.name) if not re.match(r"[\w-]+(\[\w+\])?==[\w.]+(; .+)?$", line)] == []


def test_a_first_test_run_downloads_no_trainer_and_no_baseline() -> None:
    first = {line.partition("==")[0] for line in pins("dev.txt")}
    others = {line.partition("==")[0] for name in ("trainers.txt", "baselines.txt", "docs.txt") for line in pins(name)}
    assert {"transformers", "lightning", "deepspeed"} <= others
    assert not first & others


OPTIONS: list[dict[str, Any]] = [{}, {"state_dtype": torch.int8}, {"flatten": True, "max_grad_norm": 1.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_checkpoint_loads_without_running_code(options: dict[str, Any], tmp_path: Path) -> None:
    """What SECURITY.md says of `weights_only`."""
    p = nn.Parameter(torch.ones(4096))
    p.grad = torch.ones(4096)
    opt = FusedRAdam([p], **options)
    opt.step()
    torch.save(opt.state_dict(), tmp_path / "state.pt")
    FusedRAdam([p], **options).load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert "weights_only=True" in (ROOT / "SECURITY.md").read_text()


def test_the_page_of_trainers_has_the_table_that_make_tools_runs() -> None:
    page = (ROOT / "docs" / "trainers.md").read_text()
    _, rule, *rows = table.lines()
    assert len(rows) >= 3
    assert "\n".join([rule, *rows]) + "\n\n" in page


WITH_OTHERS = ("tests/trainers", "tests/tools", "tests/mutants/__main__", "tests/mutants/warm")
"""What runs where `make trainers`, `make tools` and `make mutants` have installed more."""
OWN = {"tests", "bench", "examples", "radam_fused", "setup"}
PACKAGES = {"yaml": "PyYAML"}
"""Modules that are not named like their packages."""


def imported(path: Path) -> set[str]:
    """The packages of others that a file cannot be imported without."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.partition(".")[0])
    own = OWN | {other.stem for folder in (path.parent, ROOT / "examples") for other in folder.glob("*.py")}
    return {PACKAGES.get(name, name) for name in found - own - sys.stdlib_module_names}


def test_what_is_imported_is_required() -> None:
    """A fresh environment runs everything: no package is there by chance, as another one's dependency."""
    required = {*re.findall(r"^([\w-]+)==", (ROOT / "requirements" / "dev.txt").read_text(), re.MULTILINE)}
    files = [path for folder in ("tests", "bench", "examples") for path in (ROOT / folder).rglob("*.py")]
    files = [path for path in files if not path.relative_to(ROOT).as_posix().startswith(WITH_OTHERS)]
    assert len(files) > 200
    missing = {f"{path.relative_to(ROOT)}: {name}" for path in files for name in imported(path) - required}
    assert missing == set()


def test_a_package_that_is_not_required_is_seen() -> None:
    """The negative control: Lightning is in requirements/trainers.txt."""
    assert imported(ROOT / "tests" / "trainers" / "test_lightning.py") >= {"lightning", "pytest", "torch"}
