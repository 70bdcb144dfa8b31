"""Files that are either the old version or the new one, and folders that are there whole or not at all."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from gpseg.errors import RunError

_LONGEST = 200  # bytes; a file system takes 255, to which a temporary name adds some


def _short(name: str) -> str:
    """The name, or what stands for one so long that nothing can be added to it."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONGEST else hashlib.sha256(encoded).hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and put the file in place of `path` when the block ends well.

    The temporary file lies in the same folder, so that the rename is atomic; it is flushed to the disk before the
    rename and removed if the block raises, and `path` then stays as it was.

    Args:
        path: the file to write or replace; its folder must exist.

    Yields:
        The path to write to.

    Raises:
        RunError: if the disk is full.
    """
    temporary = path.with_name(f".{_short(path.name)}.{os.getpid()}.tmp")
    try:
        with one_line_if_disk_full(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)  # the name that was asked for
        raise


@contextlib.contextmanager
def making(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, and give it the name of `folder` when the block ends well.

    The temporary folder lies beside it and is removed if the block raises.

    Args:
        folder: the folder to make; must not be there.

    Yields:
        The folder to fill.

    Raises:
        RunError: it can't be written, as when the disk is full.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        partial.rename(folder)
    except OSError as error:
        raise RunError(
            f"cannot write {folder} ({error.strerror or error}); free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a kill left in a folder, but not those of processes that run.

    Args:
        folder: what `replacing` was used in.
    """
    for file in folder.glob(".*.tmp"):
        writer = re.fullmatch(r"\..+\.(\d+)\.tmp", file.name)
        if writer and not _runs(int(writer[1])):
            file.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def one_line_if_disk_full(path: Path) -> Iterator[None]:
    """Turn what is raised in the block, where the cause is a full disk, into a RunError that names `path`."""
    try:
        yield
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise RunError(
            f"{path}: the disk is full; free some space and run it again, with --resume if the command has it"
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an exception, or one that it came from, says that no space (or quota) is left.

    Libraries that write through their own code (torch, safetensors) report the system's error as text only.

    Args:
        error: any exception.

    Returns:
        True if the cause is a full disk.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
