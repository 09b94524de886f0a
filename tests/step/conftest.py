"""Fixtures of the tests of a step."""

from tests.support.pointer_path import pointer_calls

__all__ = ["pointer_calls"]
