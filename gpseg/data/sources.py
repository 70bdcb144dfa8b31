"""Where images come from: folders, patterns, single files and zip files."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, ZipInfo

from gpseg.errors import InputError

IMAGE_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".avif",
        ".bmp",
        ".tif",
        ".tiff",
        ".gif",
        ".ppm",
        ".pgm",
    }
)

_PARTS_OF_A_SET = ("unlabelled", "images")
_MASKS = "masks"
_ENCRYPTED = 0x1
_LARGEST_ENTRY = 1 << 30  # bytes; an entry that claims more is no photograph, and it is read whole


@dataclass(frozen=True)
class ZippedImage:
    """An image file inside a zip file, which stays open as long as one of its images is at hand.

    Args:
        archive: the zip file.
        entry: its entry for the image.
    """

    archive: ZipFile = field(repr=False)
    entry: ZipInfo

    @property
    def path(self) -> PurePosixPath:
        """Where the image lies in the zip file."""
        return PurePosixPath(self.entry.filename.lstrip("/"))

    def __str__(self) -> str:
        return f"{self.archive.filename}/{self.path}"

    def read(self) -> io.BytesIO:
        """Return the image file's content; may be called from several threads at once.

        Raises:
            InputError: it is too large for an image.
            Exception: the entry is damaged, or compressed in a way that can't be read.
        """
        if self.entry.file_size > _LARGEST_ENTRY:
            raise InputError(
                f"{self} unpacks to {self.entry.file_size >> 20} MiB, too much for an image; remove it"
            )
        return io.BytesIO(self.archive.read(self.entry))


ImageSource = Path | ZippedImage
"""What an image can be read from."""


def image_files(folder: Path) -> list[Path]:
    """List the image files directly in a folder, by known suffix, hidden ones skipped.

    Args:
        folder: an existing folder.

    Returns:
        The paths, sorted by name; empty if there are none.
    """
    # scandir tells files from folders without a stat per file, which counts with many thousands.
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if _is_image(entry.name) and entry.is_file()]
    return [folder / name for name in sorted(names)]


def images_in(path: str | Path) -> list[Path]:
    """List the images that a folder, a glob pattern (with `**`) or a single file stands for.

    Args:
        path: folder, pattern or file.

    Returns:
        The paths, sorted; at least one. A single file is returned whatever its suffix.

    Raises:
        InputError: nothing is there, or no image among it.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = image_files(path)
        if not found:
            raise InputError(
                f"{path} holds no images ({_kinds()}); pass the folder that holds them, "
                f"or a pattern such as '{path}/**/*.jpg'"
            )
        return found
    if not any(map(_is_pattern, path.parts)):
        raise InputError(f"{path} does not exist; check the path")
    fixed = list(takewhile(lambda part: not _is_pattern(part), path.parts))
    matches = Path(*fixed).glob(str(Path(*path.parts[len(fixed) :])))
    found = sorted(match for match in matches if _is_image(match.name) and match.is_file())
    if not found:
        raise InputError(f"no image ({_kinds()}) matches {path}; check the pattern and quote it")
    return found


def training_images(path: str | Path) -> list[ImageSource]:
    """List the images to pre-train on.

    Args:
        path: a data set, of which `unlabelled/` and `images/` are taken; any other folder: the images in it or, where
            it holds folders only, below it, but for folders called masks; a zip file of either, with images at any depth; or
            what `images_in` takes.

    Returns:
        The images, sorted by folder and name; at least one.

    Raises:
        InputError: there are none, or the zip file can't be read.
    """
    path = Path(path)
    if path.suffix.lower() == ".zip" and path.is_file():
        return [*_of_a_set(_zipped_images(path))]
    parts = [path / name for name in _PARTS_OF_A_SET if (path / name).is_dir()]
    if not parts and path.is_dir() and not image_files(path):
        return [*_images_below(path)] or [*images_in(path)]
    holding = [part for part in parts if image_files(part)] or parts[:1] or [path]
    return [image for part in holding for image in images_in(part)]


def _images_below(folder: Path) -> list[Path]:
    found, known = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(root)  # a link may lead back to where it is
        if place in known:
            folders.clear()
            continue
        known.add(place)
        folders[:] = [name for name in folders if not _is_hidden(name) and name.lower() != _MASKS]
        found += [Path(root, name) for name in names if _is_image(name)]
    return sorted(found)


def _zipped_images(path: Path) -> list[ZippedImage]:
    try:
        archive = ZipFile(path)
    except BadZipFile as error:
        raise InputError(
            f"{path} is not a zip file, or a damaged one ({error}); make or download it again"
        ) from None
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror})") from None
    found = [
        ZippedImage(archive, entry)
        for entry in archive.infolist()
        if not entry.is_dir() and _is_image(PurePosixPath(entry.filename).name)
    ]
    found = [
        image
        for image in found
        if not any(_is_hidden(part) or part.lower() == _MASKS for part in image.path.parts[:-1])
    ]
    if not found:
        raise InputError(f"{path} holds no images ({_kinds()})")
    if any(image.entry.flag_bits & _ENCRYPTED for image in found):
        raise InputError(f"{path} is encrypted; unpack it and pass the folder")
    return sorted(found, key=lambda image: image.path.parts)


def _of_a_set(images: list[ZippedImage]) -> list[ZippedImage]:
    """Of a zipped data set, take what `training_images` does, whether or not the zip file holds its folder too."""
    root = PurePosixPath(os.path.commonpath([image.path.parent for image in images]))
    parts = [root / name for name in _PARTS_OF_A_SET]
    return [image for part in parts for image in images if part in image.path.parents] or images


def _is_image(name: str) -> bool:
    # Quicker than a Path for each, which counts with many thousands.
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not _is_hidden(name)  # noqa: PTH122


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_pattern(part: str) -> bool:
    return any(sign in part for sign in "*?[")


def _kinds() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
