"""The builds that several files test are made once a session."""

from tests.packaging.builds import real_compiler, sdist, source, tools

__all__ = ["real_compiler", "sdist", "source", "tools"]
