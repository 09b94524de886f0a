"""Where the project's folders are, for tests that read files or start processes."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
