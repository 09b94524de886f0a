"""Makes links from docs/ to the rest of the repository work on the site; mkdocs calls these functions.

On GitHub a page links a picture, a result file or CHANGELOG.md as ``../NAME``. The site has only docs/, so each linked
file that exists is added to it under the same name, with the links of Markdown files among them. A link to a file that
does not exist is left as it is, and ``mkdocs build --strict`` fails.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(\]\()([^)\s#:]+)(?=[)#])")
ALWAYS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
"""Pages of the site that are stored at the top of the repository."""
FOLDER = "files/"
"""Where the site has files of the repository that are no pages: raw results and sources."""


def links(page: Path) -> Iterator[Path]:
    """The files of the repository that a Markdown file links."""
    for _, target in LINK.findall(page.read_text()):
        path = (page.parent / target).resolve()
        if path.is_relative_to(ROOT) and path.is_file():
            yield path


def site_name(path: Path) -> str:
    """What the site calls a file of the repository."""
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return name if name in ALWAYS or path.suffix == ".png" else FOLDER + name


def on_files(files: Files, config: Any) -> Files:
    """Adds the files outside docs/ that pages link."""
    waiting = [*sorted((ROOT / "docs").glob("*.md")), *(ROOT / name for name in ALWAYS)]
    seen: set[Path] = set()
    while waiting:
        page = waiting.pop()
        found = {page, *links(page)} if page.suffix == ".md" else {page}
        for path in sorted(found - seen):
            seen.add(path)
            if path != page and path.suffix == ".md":
                waiting.append(path)
            name = site_name(path)
            if files.get_file_from_path(name) is None:
                files.append(File.generated(config, name, abs_src_path=str(path)))
                if name.startswith(FOLDER):
                    files.get_file_from_path(name).inclusion = _not_in_nav()
    hidden = files.get_file_from_path("site_hooks.py")
    if hidden is not None:
        files.remove(hidden)
    return files


def _not_in_nav() -> Any:
    from mkdocs.structure.files import InclusionLevel

    return InclusionLevel.NOT_IN_NAV


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Points links at the names that the site has for their files."""
    source = Path(page.file.abs_src_path).resolve()
    here = posixpath.dirname(page.file.src_uri)

    def replaced(found: re.Match[str]) -> str:
        path = (source.parent / found[2]).resolve()
        if not (path.is_relative_to(ROOT) and path.is_file()):
            return found[0]
        return found[1] + posixpath.relpath(site_name(path), here or ".")

    return LINK.sub(replaced, markdown)
