"""The report of a run. ``from report import build_report``."""

from .page import build_report

__all__ = ["build_report"]
