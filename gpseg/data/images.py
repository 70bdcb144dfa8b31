"""Image files of any size and mode, fitted to a square and back."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from gpseg.errors import InputError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"}
)

_PROGRESS_FROM = 500  # images; fewer load in about a second
_EXIF_ORIENTATION = 0x0112
_EXIF_QUARTER_TURNS = frozenset({5, 6, 7, 8})


def image_files(folder: Path) -> list[Path]:
    """List the image files directly in a folder, by known suffix, hidden ones skipped.

    Args:
        folder: an existing folder.

    Returns:
        The paths, sorted by name; empty if there are none.
    """
    # scandir tells files from folders without a stat per file, which counts with many thousands.
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if not entry.name.startswith(".")
            and os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122
            and entry.is_file()
        ]
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
    kinds = ", ".join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))
    if path.is_dir():
        found = image_files(path)
        if not found:
            raise InputError(
                f"{path} holds no images ({kinds}); pass the folder that holds them, "
                f"or a pattern such as '{path}/**/*.jpg'"
            )
        return found
    if not any(map(_is_pattern, path.parts)):
        raise InputError(f"{path} does not exist; check the path")
    fixed = list(takewhile(lambda part: not _is_pattern(part), path.parts))
    matches = Path(*fixed).glob(str(Path(*path.parts[len(fixed) :])))
    found = sorted(
        match
        for match in matches
        if match.suffix.lower() in IMAGE_SUFFIXES
        and not match.name.startswith(".")
        and match.is_file()
    )
    if not found:
        raise InputError(f"no image ({kinds}) matches {path}; check the pattern and quote it")
    return found


def _is_pattern(part: str) -> bool:
    return any(sign in part for sign in "*?[")


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while reading a file into one line that names it.

    Args:
        path: the file being read inside the context.

    Raises:
        InputError: in place of any error raised inside.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; check the path") from None
    except UnidentifiedImageError:
        raise InputError(
            f"{path} is not an image that can be read; export it again or remove it"
        ) from None
    except Exception as error:  # decoders raise almost any type on a broken file
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"cannot read {path} ({reason}); it is damaged or unreadable: replace or remove it"
        ) from error


def image_size(path: Path) -> tuple[int, int]:
    """Read an image's width and height as displayed (EXIF rotation applied), from its header.

    Args:
        path: image file.

    Returns:
        Width and height in pixels.

    Raises:
        InputError: the file can't be read.
    """
    with decoding(path), Image.open(path) as image:
        width, height = image.size
        if image.getexif().get(_EXIF_ORIENTATION) in _EXIF_QUARTER_TURNS:
            width, height = height, width
    return width, height


def read_image(path: str | Path, draft: int | None = None) -> Image.Image:
    """Read an image file of any mode as 8-bit RGB, upright.

    EXIF rotation is applied, transparency is laid over white, 16-bit and floating-point greys are
    scaled to 8 bits.

    Args:
        path: image file.
        draft: let JPEG decode at a smaller size whose sides are still at least this many pixels;
            None decodes at full size.

    Returns:
        An RGB image.

    Raises:
        InputError: the file is missing, truncated or no image.
    """
    path = Path(path)
    with decoding(path), Image.open(path) as image:
        if draft is not None and image.format == "JPEG":
            image.draft(None, (draft, draft))
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            return Image.fromarray(_to_8_bits(np.asarray(upright))).convert("RGB")
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            return Image.alpha_composite(white, upright).convert("RGB")
        return upright.convert("RGB")


def _to_8_bits(grey: np.ndarray) -> np.ndarray:
    """Scale a grey image of more than 8 bits, or in floats, to uint8."""
    if grey.dtype == np.uint16:
        peak = 65535.0
    else:
        # Formats without a stated range: the smallest customary one that holds the values.
        top = float(np.nan_to_num(grey).max(initial=0))
        customary = (1.0, 255.0, 65535.0) if grey.dtype.kind == "f" else (255.0, 65535.0)
        peak = next((limit for limit in customary if top <= limit), top)
    scaled = np.nan_to_num(grey.astype(np.float64)) * (255.0 / peak)
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Placement:
    """Where an image of `width` by `height` lies in a square of side `resolution`, in pixels."""

    width: int
    height: int
    resolution: int
    left: int
    top: int
    fitted_width: int
    fitted_height: int

    @classmethod
    def centred(cls, width: int, height: int, resolution: int) -> Placement:
        """Place an image at the centre of a square, as large as it goes, its aspect kept.

        Args:
            width: image width, at least 1.
            height: image height, at least 1.
            resolution: side of the square.

        Returns:
            The placement.
        """
        scale = resolution / max(width, height)
        fitted_width = max(1, round(width * scale))
        fitted_height = max(1, round(height * scale))
        return cls(
            width=width,
            height=height,
            resolution=resolution,
            left=(resolution - fitted_width) // 2,
            top=(resolution - fitted_height) // 2,
            fitted_width=fitted_width,
            fitted_height=fitted_height,
        )

    @property
    def border(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Pixels of border above and below, and left and right, as `numpy.pad` takes them."""
        return (
            (self.top, self.resolution - self.top - self.fitted_height),
            (self.left, self.resolution - self.left - self.fitted_width),
        )

    def restore(self, probabilities: Tensor) -> Tensor:
        """Bring per-pixel values in the square back to the input's own size.

        Args:
            probabilities: floating, [..., K, resolution, resolution].

        Returns:
            [..., K, height, width], the border cropped away, resampled bilinearly.
        """
        inside = probabilities[
            ...,
            self.top : self.top + self.fitted_height,
            self.left : self.left + self.fitted_width,
        ]
        size = (self.height, self.width)
        flat = inside.reshape(-1, 1, self.fitted_height, self.fitted_width)
        shrinks = self.fitted_height > self.height or self.fitted_width > self.width
        restored = F.interpolate(
            flat, size=size, mode="bilinear", align_corners=False, antialias=shrinks
        )
        return restored.reshape(*inside.shape[:-2], *size)


def fit_square(image: Image.Image, resolution: int) -> tuple[Tensor, Placement]:
    """Fit an image into a square, its aspect kept, the border filled with its edge pixels.

    Args:
        image: RGB image of any size.
        resolution: side of the square in pixels.

    Returns:
        uint8 [3, resolution, resolution], and the placement that leads back.
    """
    placement = Placement.centred(image.width, image.height, resolution)
    size = (placement.fitted_width, placement.fitted_height)
    if image.size != size:
        shrinks = image.width > size[0] or image.height > size[1]
        # Hamming averages with little aliasing and, unlike the sharper filters, no ringing.
        sampling = Image.Resampling.HAMMING if shrinks else Image.Resampling.BICUBIC
        image = image.resize(size, sampling, reducing_gap=3.0)
    pixels = np.asarray(image)
    if size != (resolution, resolution):
        pixels = np.pad(pixels, (*placement.border, (0, 0)), mode="edge")
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), placement


def load_image(path: str | Path, resolution: int) -> Tensor:
    """Read one image file into a square.

    Args:
        path: image file.
        resolution: side of the square in pixels.

    Returns:
        uint8 [3, resolution, resolution].

    Raises:
        InputError: the file can't be read.
    """
    # Decoding at twice the size or more leaves the antialiased resize enough to work with.
    return fit_square(read_image(path, draft=2 * resolution), resolution)[0]


def load_images(paths: Sequence[str | Path], resolution: int, progress: bool = True) -> Tensor:
    """Read many image files into squares, several at a time.

    Args:
        paths: image files.
        resolution: side of the squares in pixels.
        progress: show a progress bar when there are many.

    Returns:
        uint8 [len(paths), 3, resolution, resolution].

    Raises:
        InputError: a file can't be read; it is named.
    """
    images = torch.empty(len(paths), 3, resolution, resolution, dtype=torch.uint8)
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        loaded = pool.map(lambda path: load_image(path, resolution), paths)
        shown = tqdm(
            loaded,
            total=len(paths),
            desc="reading images",
            unit="img",
            disable=not progress or len(paths) < _PROGRESS_FROM,
        )
        try:
            for index, image in enumerate(shown):
                images[index] = image
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images


class UnlabelledImages:
    """Images without masks, decoded once and kept in memory where they fit.

    Args:
        paths: image files.
        resolution: side of the squares in pixels.
        progress: show a progress bar while reading many.
        cache_bytes: memory that the decoded images may take; a larger set is decoded anew for
            every batch, and unreadable files then show only when their turn comes.

    Raises:
        InputError: a file can't be read; it is named.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        resolution: int,
        progress: bool = True,
        cache_bytes: int = 2 << 30,
    ) -> None:
        self.paths = list(paths)
        self.resolution = resolution
        fits = len(self.paths) * 3 * resolution * resolution <= cache_bytes
        self._images = load_images(self.paths, resolution, progress) if fits else None

    @property
    def in_memory(self) -> bool:
        """Whether the images fit into memory, decoded."""
        return self._images is not None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return the images of the given indices as uint8 [n, 3, resolution, resolution]."""
        if self._images is not None:
            return self._images[torch.as_tensor(indices, dtype=torch.long)]
        chosen = [self.paths[int(index)] for index in indices]
        return load_images(chosen, self.resolution, progress=False)

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw images uniformly, with replacement.

        Args:
            count: number of images.
            generator: source of randomness, on the CPU.

        Returns:
            uint8 [count, 3, resolution, resolution].
        """
        return self[torch.randint(len(self), (count,), generator=generator)]
