"""The state of an unfinished run. ``from checkpoint import Checkpoint``."""

from .file import LAST, PREVIOUS
from .run import Checkpoint

__all__ = ["LAST", "PREVIOUS", "Checkpoint"]
