"""Images without masks: decoded once, packed into a file that later runs find again, and mapped into memory.

The file is a plain `.npy` in a cache folder, named after what it is made of: every image's path, size and time, and the
resolution. It is written in order under another name, with a lock held that the system lifts when the process ends, however
it ends; so whoever comes next, after a kill or out of several processes that start at once, waits for the lock and goes on
from what is there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import logging
import math
import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gpseg.atomic import is_disk_full
from gpseg.data.images import decoding, load_images, stream_images
from gpseg.data.sources import ImageSource, ZippedImage
from gpseg.errors import InputError, RunError

log = logging.getLogger(__name__)

_VERSION = (
    2  # of what reading and fitting make of an image; a change of theirs makes older files stale
)
_SMALL = 32 << 20  # bytes of files, and of pixels, that are read anew in a second or two
_KEPT_DAYS = 30


class UnlabelledImages:
    """Images without masks, fitted to squares: packed into a file and mapped into memory, or kept there if they are few.

    Args:
        sources: where to read them from.
        resolution: side of the squares in pixels.
        left_out: which of them don't count; they are packed, so that one file serves whatever is left out.
        progress: show a progress bar while reading many.

    Raises:
        InputError: images can't be read (the first hundred are named), or the cache folder can't be used.
        RunError: the disk is full.
    """

    def __init__(
        self,
        sources: Sequence[str | ImageSource],
        resolution: int,
        left_out: Collection[str | ImageSource] = (),
        progress: bool = True,
    ) -> None:
        self._rows = np.array(
            [row for row, source in enumerate(sources) if source not in left_out], dtype=np.int64
        )
        shape = (len(sources), 3, resolution, resolution)
        origins = [_origin(source) for source in sources]
        if max(math.prod(shape), sum(size for _, size, _ in origins)) <= _SMALL:
            self._pixels = load_images(sources, resolution, progress).numpy()
            return
        made_of = repr((_VERSION, resolution, origins)).encode()
        name = f"images-{resolution}px-{hashlib.sha256(made_of).hexdigest()[:24]}.npy"
        self._pixels = _packed(cache_folder() / name, sources, shape, progress)

    @property
    def in_memory(self) -> bool:
        """Whether all of them stay in memory: of a mapped file, the system keeps what it has room for."""
        return self._pixels.nbytes <= _memory() // 2

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return the images of the given indices as uint8 [n, 3, resolution, resolution]."""
        rows = self._rows[np.asarray(indices, dtype=np.int64)]
        return torch.from_numpy(self._pixels.take(rows, axis=0))


def cache_folder() -> Path:
    """Where packed images are kept: `GPSEG_CACHE`, or `gpseg` among the user's caches."""
    if given := os.environ.get("GPSEG_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gpseg"


def fingerprint(sources: Sequence[str | ImageSource]) -> str:
    """A hash of which images these are, by path, size and time, or in a zip file checksum.

    Raises:
        InputError: one isn't there.
    """
    return hashlib.sha256(repr([_origin(source) for source in sources]).encode()).hexdigest()


def _origin(source: str | ImageSource) -> tuple[str, int, int]:
    """What tells an image from any other, and from an earlier version of itself; its bytes come second."""
    if isinstance(source, ZippedImage):
        archive = os.path.abspath(str(source.archive.filename))  # noqa: PTH100  keeps links
        return f"{archive}/{source.path}", source.entry.file_size, source.entry.CRC
    with decoding(source):
        status = os.stat(source)  # noqa: PTH116
    return os.path.abspath(source), status.st_size, status.st_mtime_ns  # noqa: PTH100  keeps links


def _packed(
    path: Path, sources: Sequence[str | ImageSource], shape: tuple[int, ...], progress: bool
) -> np.ndarray:
    """Map a file of packed images into memory, making it first if it isn't there and whole."""
    count, side, mib = shape[0], shape[-1], math.prod(shape) / 2**20
    pixels = _mapped(path, shape)
    if pixels is not None:
        log.info("%s: %d images of %d px, packed before, %.0f MiB", path, count, side, mib)
        return pixels
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            # Another process may have made it meanwhile.
            pixels = _mapped(path, shape)
            if pixels is None:
                log.info(
                    "%s: packing %d images of %d px once for all runs, %.0f MiB (GPSEG_CACHE says where)",
                    path,
                    count,
                    side,
                    mib,
                )
                _prune(path.parent)
                _pack(path, sources, shape, progress)
                pixels = _mapped(path, shape)
    except OSError as error:
        remedy = f"set GPSEG_CACHE to a folder that can hold {mib:.0f} MiB of packed images"
        if is_disk_full(error):
            raise RunError(
                f"{path.parent}: the disk is full; free some space, or {remedy}"
            ) from error
        raise InputError(
            f"{path.parent} can't be used ({error.strerror or error}); {remedy}"
        ) from error
    assert pixels is not None
    return pixels


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Map a file into memory; None if it isn't there, or is not what is expected to the last byte."""
    try:
        pixels = np.lib.format.open_memmap(path, mode="r")
        if path.stat().st_size != len(_header(shape)) + math.prod(shape):
            return None
    except (OSError, ValueError):
        return None
    if pixels.dtype != np.uint8 or pixels.shape != shape or not pixels.flags.c_contiguous:
        return None
    # The time of last use, for `_prune`; the cache may be somebody else's.
    with suppress(OSError):
        os.utime(path)
    return pixels.view(np.ndarray)


def _pack(
    path: Path, sources: Sequence[str | ImageSource], shape: tuple[int, ...], progress: bool
) -> None:
    """Write the images in order, going on from where a killed process was; the lock is held."""
    unfinished = path.with_suffix(".part")
    header, size = _header(shape), math.prod(shape[1:])
    try:
        with unfinished.open("a+b") as file:
            there = file.tell()
            file.seek(0)
            begun = file.read(len(header)) == header
            done = min((there - len(header)) // size, len(sources)) if begun else 0
            file.truncate(len(header) + done * size if begun else 0)
            if not begun:
                file.write(header)
            needed = (len(sources) - done) * size
            if shutil.disk_usage(path.parent).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            for image in stream_images(sources, shape[-1], progress, done, doing="packing"):
                file.write(image.numpy().data)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except (InputError, OSError):
        # It would take room for nothing: images that change make another file.
        unfinished.unlink(missing_ok=True)
        raise


def _header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    content = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, content)
    return header.getvalue()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time work on a file; when the one that does dies, the next has its turn."""
    with path.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process is packing these images; waiting for it", path)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prune(folder: Path) -> None:
    """Remove what no run has used for a month."""
    for path in folder.glob("images-*px-*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _KEPT_DAYS * 86400:
                path.unlink()


def _memory() -> int:
    """Bytes of memory that the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
