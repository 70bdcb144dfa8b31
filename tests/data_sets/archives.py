"""Zip files of folders."""

import shutil
from pathlib import Path


def zipped(folder: Path, below: str = ".") -> Path:
    """Zip a folder, with its own name at the root if `below` is that name."""
    root = folder if below == "." else folder.parent
    return Path(shutil.make_archive(str(folder), "zip", root, below))
