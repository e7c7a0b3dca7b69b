"""The state of an unfinished run, in files that are verified before they are used."""

from .file import LAST, PREVIOUS
from .run import Checkpoint, discard

__all__ = ["LAST", "PREVIOUS", "Checkpoint", "discard"]
