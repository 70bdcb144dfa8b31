"""Images of any size and mode, read, fitted to a square and back."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from gpseg.data.sources import ImageSource, ZippedImage
from gpseg.errors import InputError

log = logging.getLogger(__name__)

_PROGRESS_FROM = 500  # images; fewer load in about a second
_READ_AHEAD = 4  # images for each thread
_MOST_ERRORS = 100  # images that can't be read; what is wrong with so many is not the images
_EXIF_ORIENTATION = 0x0112
_EXIF_QUARTER_TURNS = frozenset({5, 6, 7, 8})


@contextmanager
def decoding(path: str | ImageSource) -> Iterator[None]:
    """Turn whatever goes wrong while reading a file into one line that names it.

    Args:
        path: what is being read inside the context.

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
    except Image.DecompressionBombError:
        raise InputError(
            f"{path} has more than {2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6:.0f} million pixels; make it smaller"
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
        return _displayed_size(image)


def _displayed_size(image: Image.Image) -> tuple[int, int]:
    if image.format == "TIFF":
        # Pillow turns the size of these when it opens them, and drops the tag when it has decoded them.
        image.load()
    width, height = image.size
    turned = image.getexif().get(_EXIF_ORIENTATION) in _EXIF_QUARTER_TURNS
    return (height, width) if turned else (width, height)


def read_image(source: str | ImageSource) -> Image.Image:
    """Read an image of any mode as 8-bit RGB, upright.

    EXIF rotation is applied, transparency is laid over white, 16-bit and floating-point greys are
    scaled to 8 bits.

    Args:
        source: where to read it from.

    Returns:
        An RGB image.

    Raises:
        InputError: it is missing, truncated or no image.
    """
    with _opened(source) as image:
        return _upright(image)


@contextmanager
def _opened(source: str | ImageSource) -> Iterator[Image.Image]:
    source = Path(source) if isinstance(source, str) else source
    with (
        decoding(source),
        Image.open(source.read() if isinstance(source, ZippedImage) else source) as image,
    ):
        yield image


def _upright(image: Image.Image) -> Image.Image:
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
    if grey.dtype.kind == "u" and grey.dtype.itemsize == 2:  # in either byte order
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
    return _fitted(image, placement), placement


def _fitted(image: Image.Image, placement: Placement) -> Tensor:
    size = (placement.fitted_width, placement.fitted_height)
    if image.size != size:
        shrinks = image.width > size[0] or image.height > size[1]
        # Hamming averages with little aliasing and, unlike the sharper filters, no ringing.
        sampling = Image.Resampling.HAMMING if shrinks else Image.Resampling.BICUBIC
        image = image.resize(size, sampling, reducing_gap=3.0)
    pixels = np.asarray(image)
    if size != (placement.resolution, placement.resolution):
        pixels = np.pad(pixels, (*placement.border, (0, 0)), mode="edge")
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def read_square(source: str | ImageSource, resolution: int) -> tuple[Tensor, Placement]:
    """Read one image into a square.

    Args:
        source: where to read it from.
        resolution: side of the square in pixels.

    Returns:
        uint8 [3, resolution, resolution], and the placement that leads back to the image's own size.

    Raises:
        InputError: it can't be read.
    """
    with _opened(source) as image:
        placement = Placement.centred(*_displayed_size(image), resolution)
        if image.format == "JPEG":
            # Decoding at twice the size or more leaves the antialiased resize enough to work with. The smaller size is
            # rounded, so that it can't say where the image lies.
            image.draft(None, (2 * resolution, 2 * resolution))
        return _fitted(_upright(image), placement), placement


def load_images(
    sources: Sequence[str | ImageSource], resolution: int, progress: bool = True
) -> Tensor:
    """Read many images into squares, several at a time.

    Args:
        sources: where to read them from.
        resolution: side of the squares in pixels.
        progress: show a progress bar when there are many.

    Returns:
        uint8 [len(sources), 3, resolution, resolution].

    Raises:
        InputError: images can't be read; see `stream_images`.
    """
    images = torch.empty(len(sources), 3, resolution, resolution, dtype=torch.uint8)
    for index, image in enumerate(stream_images(sources, resolution, progress)):
        images[index] = image
    return images


def stream_images(
    sources: Sequence[str | ImageSource],
    resolution: int,
    progress: bool = True,
    start: int = 0,
    doing: str = "reading",
) -> Iterator[Tensor]:
    """Read many images into squares, several at a time, and only a few more than are asked for.

    Once an image can't be read, the others are read only to find all that can't.

    Args:
        sources: where to read them from.
        resolution: side of the squares in pixels.
        progress: show a progress bar when there are many.
        start: how many to leave out at the beginning.
        doing: what the progress bar says.

    Yields:
        uint8 [3, resolution, resolution], in the order of the sources.

    Raises:
        InputError: an image can't be read; it is named, and if there are more, they have been logged.
    """
    errors: list[InputError] = []
    bar = tqdm(
        total=len(sources),
        initial=start,
        desc=f"{doing} images",
        unit="img",
        mininterval=1.0,
        disable=not progress or len(sources) - start < _PROGRESS_FROM,
    )
    with bar:
        for image in _attempts(sources[start:], resolution):
            bar.update()
            if isinstance(image, Tensor):
                if not errors:
                    yield image
                continue
            errors.append(image)
            log.warning("%s", image)
            if len(errors) == _MOST_ERRORS:
                break
    if len(errors) > 1:
        more = f"at least {len(errors) - 1}" if len(errors) == _MOST_ERRORS else len(errors) - 1
        raise InputError(f"{errors[0]} (and {more} more images, listed above)")
    if errors:
        raise errors[0]


def _attempts(
    sources: Sequence[str | ImageSource], resolution: int
) -> Iterator[Tensor | InputError]:
    """Read images in threads, in order; one that can't be read comes as what is wrong with it."""
    workers = min(16, os.cpu_count() or 1)
    reading: deque[Future[Tensor | InputError]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for source in sources:
                reading.append(pool.submit(_attempt, source, resolution))
                if len(reading) > _READ_AHEAD * workers:
                    yield reading.popleft().result()
            while reading:
                yield reading.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _attempt(source: str | ImageSource, resolution: int) -> Tensor | InputError:
    try:
        return read_square(source, resolution)[0]
    except InputError as error:
        return error
