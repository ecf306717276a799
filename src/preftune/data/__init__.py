"""Preference data: `load` a file, a folder, a hub id or a mixture of them; `preftune.data.check` looks into what was loaded."""

from .columns import Record
from .files import Dataset, from_rows, load, save

__all__ = ["Dataset", "Record", "from_rows", "load", "save"]
