"""Files that are either the old version or the new one, never half of either."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from gpseg.errors import RunError


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            raise RunError(
                f"{path}: the disk is full; free some space and continue with --resume"
            ) from error
        raise


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
