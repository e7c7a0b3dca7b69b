"""Finished runs side by side. ``from onecycle.results.compare import compare``."""

from .page import compare

__all__ = ["compare"]
