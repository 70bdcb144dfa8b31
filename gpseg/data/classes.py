"""The part classes of a data set, and the mask files written in their terms."""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gpseg.data.images import Placement, decoding
from gpseg.errors import InputError

Color = tuple[int, int, int]

_IGNORE_COLOR: Color = (255, 255, 255)
_SAVE_INDEXED = "save it as an indexed (palette) PNG whose pixel values are class ids, or name its colours in a classes.json"


@dataclass(frozen=True)
class PartClass:
    """One class of parts: its id in masks, its name, and its colour (0..255 each)."""

    id: int
    name: str
    color: Color


@dataclass(frozen=True)
class Classes:
    """The classes of a data set, ids 0..K-1 in order, id 0 the background.

    Args:
        classes: the classes in the order of their ids.
        ignore_index: id of pixels that carry no label.
        swap: pairs of ids that trade places in a mirrored image (left and right parts).

    Raises:
        InputError: ids not contiguous from 0, colours or names shared, or a bad swap pair.
    """

    classes: tuple[PartClass, ...]
    ignore_index: int = 255
    swap: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        ids = [part.id for part in self.classes]
        if len(ids) < 2:
            raise InputError("there must be at least two classes: background (id 0) and a part")
        if ids != list(range(len(ids))):
            raise InputError(
                f"class ids must be 0..{len(ids) - 1} in order, each once, but are "
                f"{_listed(ids)}; renumber them in classes.json and in the masks"
            )
        if not len(ids) <= self.ignore_index <= 255:
            raise InputError(
                f"ignore_index {self.ignore_index} must lie above the class ids and be at most 255"
            )
        for what in ("name", "color"):
            seen: dict[object, int] = {}
            for part in self.classes:
                value = getattr(part, what)
                if value in seen:
                    raise InputError(
                        f"classes {seen[value]} and {part.id} have the same {what} {value}; "
                        f"give each its own"
                    )
                seen[value] = part.id
        swapped = [part for pair in self.swap for part in pair]
        if len(set(swapped)) != len(swapped) or not set(swapped) <= set(ids):
            raise InputError(
                f"swap pairs {list(self.swap)} must name existing class ids, each at most once"
            )

    @classmethod
    def load(cls, path: str | Path) -> Classes:
        """Read a classes.json.

        A class needs an `id`; `name` and `color` have defaults.

        Args:
            path: the file.

        Returns:
            The classes.

        Raises:
            InputError: the file is missing, malformed or inconsistent.
        """
        path = Path(path)
        content = read_json(path)
        try:
            return cls.from_json(content)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Classes:
        """Make classes from what a classes.json holds.

        Args:
            content: the parsed file; see `load`.

        Returns:
            The classes.

        Raises:
            InputError: the content is malformed or inconsistent.
        """
        check_keys(content, ("classes", "ignore_index", "swap"))
        try:
            entries = sorted(content["classes"], key=lambda entry: entry["id"])
            for entry in entries:
                check_keys(entry, ("id", "name", "color", "of"))
            parts = tuple(
                PartClass(
                    id=_integer(entry["id"]),
                    name=_text(entry.get("name", _default_name(entry["id"]))),
                    color=_color(entry.get("color", _default_color(entry["id"]))),
                )
                for entry in entries
            )
            ignore_index = _integer(content.get("ignore_index", 255))
            swap = tuple((_integer(a), _integer(b)) for a, b in content.get("swap", []))
        except InputError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"this is no list of classes ({type(error).__name__}: {error}); expected "
                '{"classes": [{"id": 0, "name": "background", "color": [0, 0, 0]}, ...]}'
            ) from error
        return cls(parts, ignore_index, swap)

    @classmethod
    def from_masks(cls, paths: Sequence[Path]) -> Classes:
        """Make classes from the ids and palettes found in masks.

        Names are `background`, `class_1`, ...; colours come from the palettes where these agree
        and tell the classes apart, else from a default palette.

        Args:
            paths: indexed or grey mask files, at least one.

        Returns:
            The classes.

        Raises:
            InputError: a mask is unreadable or RGB, the ids have gaps, or masks show one colour for different ids.
        """
        used: set[int] = set()
        palette: dict[int, Color] = {}
        meant: dict[Color, tuple[int, Path]] = {}
        agree = True
        for path in paths:
            ids, colors = _read_indexed(path)
            present = np.flatnonzero(np.bincount(ids.ravel(), minlength=256)).tolist()
            used.update(present)
            for index in present:
                color = colors[index] if colors is not None else None
                agree &= color is not None and palette.setdefault(index, color) == color
            if colors is not None and len({colors[i] for i in present}) == len(present):
                for index in present:
                    other, where = meant.setdefault(colors[index], (index, path))
                    if other != index:
                        raise InputError(
                            f"{path} shows id {index} in the colour that id {other} has in {where.name}; ids must mean "
                            "the same in all masks: correct one, or write a classes.json if they do"
                        )
        used.discard(255)
        count = max(used, default=0) + 1
        if count < 2:
            raise InputError(
                f"the masks in {paths[0].parent} hold no part (only 0 = background and "
                "255 = ignore); number the parts from 1"
            )
        if used != set(range(count)):
            raise InputError(
                f"the masks in {paths[0].parent} use ids {_listed(sorted(used))}, with gaps; "
                f"renumber them 0, 1, 2, ... or write a classes.json that lists 0..{count - 1}"
            )
        agree &= len(set(palette.values())) == count + (255 in palette)
        return cls(
            tuple(
                PartClass(
                    index, _default_name(index), palette[index] if agree else _default_color(index)
                )
                for index in range(count)
            )
        )

    def to_json(self) -> dict[str, Any]:
        """Return what a classes.json holds, for `from_json`."""
        content: dict[str, Any] = {
            "ignore_index": self.ignore_index,
            "classes": [
                {"id": part.id, "name": part.name, "color": list(part.color)}
                for part in self.classes
            ],
        }
        if self.swap:
            content["swap"] = [list(pair) for pair in self.swap]
        return content

    def save(self, path: str | Path) -> None:
        """Write a classes.json.

        Args:
            path: the file to write.
        """
        write_json(Path(path), self.to_json())

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names in the order of ids."""
        return tuple(part.name for part in self.classes)

    @property
    def colors(self) -> tuple[Color, ...]:
        """Colours in the order of ids, 0..255 each."""
        return tuple(part.color for part in self.classes)

    def palette_bytes(self) -> bytes:
        """Return the 768 bytes of an indexed PNG's palette; ignored pixels are white."""
        palette = np.zeros((256, 3), dtype=np.uint8)
        palette[: self.num_classes] = self.colors
        palette[self.ignore_index] = _IGNORE_COLOR
        return palette.tobytes()

    def swap_table(self) -> Tensor:
        """Return the ids of a mirrored mask: int64 [256], identity apart from swapped pairs."""
        table = torch.arange(256)
        for a, b in self.swap:
            table[a], table[b] = b, a
        return table

    def read_mask(self, path: str | Path) -> np.ndarray:
        """Read a mask file as class ids.

        Indexed and grey files hold ids; an RGB file is taken only if each of its colours is
        exactly a class's colour.

        Args:
            path: mask file.

        Returns:
            uint8 [H, W] of class ids and `ignore_index`.

        Raises:
            InputError: the file is unreadable, or holds ids or colours of no class.
        """
        path = Path(path)
        with _upright(path) as image:
            if image.mode in ("RGB", "RGBA"):
                return self._ids_of_colors(np.asarray(image.convert("RGB")), path)
        ids, _ = _read_indexed(path)
        used = np.flatnonzero(np.bincount(ids.ravel(), minlength=256))
        unknown = [i for i in used.tolist() if i >= self.num_classes and i != self.ignore_index]
        if unknown:
            raise InputError(
                f"{path} holds ids {_listed(unknown)}, but classes.json lists "
                f"0..{self.num_classes - 1} and {self.ignore_index} (ignore); "
                "correct the mask or add the classes"
            )
        return ids

    def write_mask(self, mask: np.ndarray | Tensor, path: str | Path) -> None:
        """Write a mask as an indexed PNG in the classes' colours.

        Args:
            mask: uint8 [H, W] of class ids and `ignore_index`.
            path: the file to write.
        """
        image = Image.fromarray(np.ascontiguousarray(np.asarray(mask, dtype=np.uint8)))
        image.putpalette(self.palette_bytes())
        image.save(path, format="PNG")

    def _ids_of_colors(self, pixels: np.ndarray, path: Path) -> np.ndarray:
        codes = pixels.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)
        class_codes, class_ids = self._color_codes
        slots = np.searchsorted(class_codes, codes).clip(max=len(class_codes) - 1)
        if (class_codes[slots] != codes).any():
            raise InputError(
                f"{path} is an RGB image with colours that are no class's colour; {_SAVE_INDEXED}"
            )
        ids: np.ndarray = class_ids[slots]
        return ids

    @cached_property
    def _color_codes(self) -> tuple[np.ndarray, np.ndarray]:
        codes = np.array([r * 65536 + g * 256 + b for r, g, b in self.colors], dtype=np.int32)
        order = np.argsort(codes)
        return codes[order], order.astype(np.uint8)


def fit_mask(mask: np.ndarray, resolution: int, ignore_index: int = 255) -> Tensor:
    """Fit a mask into a square as `fit_square` fits its image.

    Every pixel takes the id that covers the most of its area, so that parts thinner than a pixel
    don't come and go with the sampling grid, as they do with nearest sampling.

    Args:
        mask: uint8 [H, W] of class ids and `ignore_index`.
        resolution: side of the square in pixels.
        ignore_index: id for the border.

    Returns:
        uint8 [resolution, resolution].
    """
    height, width = mask.shape
    placement = Placement.centred(width, height, resolution)
    fitted = mask
    if (placement.fitted_height, placement.fitted_width) != mask.shape:
        down = _area_weights(height, placement.fitted_height)
        across = _area_weights(width, placement.fitted_width).T
        present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        cover = np.stack([down @ (mask == i).astype(np.float32) @ across for i in present])
        # Rounded so that exact ties stay ties and go to the lower id on every machine.
        fitted = present[cover.round(4).argmax(axis=0)].astype(np.uint8)
    padded = np.pad(fitted, placement.border, constant_values=ignore_index)
    return torch.from_numpy(padded)


def _area_weights(size: int, fitted: int) -> np.ndarray:
    """Weights [fitted, size] with which each fitted pixel averages the pixels it covers."""
    step = size / fitted
    starts = np.arange(fitted)[:, None] * step
    pixels = np.arange(size)[None, :]
    overlap = np.minimum(starts + step, pixels + 1) - np.maximum(starts, pixels)
    weights: np.ndarray = (overlap.clip(min=0) / step).astype(np.float32)
    return weights


@contextmanager
def _upright(path: Path) -> Iterator[Image.Image]:
    """A mask as it is displayed, as its image is read."""
    with decoding(path), Image.open(path) as image:
        yield ImageOps.exif_transpose(image)


def _read_indexed(path: Path) -> tuple[np.ndarray, list[Color] | None]:
    """Read a mask's raw ids, uint8 [H, W], and its palette if it has one."""
    with _upright(path) as image:
        if image.mode == "P":
            flat = image.getpalette() or []
            flat += [0] * (768 - len(flat))
            colors = [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, 768, 3)]
            return np.array(image, dtype=np.uint8), colors
        if image.mode in ("L", "1") or image.mode.startswith("I"):
            ids = np.asarray(image)
            if ids.max(initial=0) > 255 or ids.min(initial=0) < 0:
                raise InputError(
                    f"{path} holds pixel values up to {int(ids.max())}; class ids go to 254 "
                    f"(255 = ignore): {_SAVE_INDEXED}"
                )
            return ids.astype(np.uint8), None
        raise InputError(f"{path} is an image of mode {image.mode}, not of ids; {_SAVE_INDEXED}")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        InputError: the file is missing, no JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path} is not valid JSON (line {error.lineno}: {error.msg}); correct that line"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}); check the file") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object {{...}}, not a {type(content).__name__}")
    return content


def check_keys(content: dict[str, Any], known: Sequence[str]) -> None:
    """Refuse keys that look like misspelt ones; others may be notes.

    Args:
        content: a JSON object.
        known: the keys that mean something.

    Raises:
        InputError: there is such a key.
    """
    for key in content.keys() - set(known):
        meant = get_close_matches(key.lower(), known, n=1, cutoff=0.8)
        meant = meant or [name for name in known if len(key) > 2 and key.lower() in name]
        if meant:
            raise InputError(f'"{key}" is not known; "{meant[0]}" is')


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file whole or not at all.

    Args:
        path: the file to write.
        content: what to write.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _default_name(index: int) -> str:
    return f"class_{index}" if index else "background"


def _default_color(index: int) -> Color:
    """Black for the background, else hues a golden angle apart, so that neighbours differ."""
    if index == 0:
        return (0, 0, 0)
    turn = index * 0.618034
    red, green, blue = colorsys.hsv_to_rgb(turn % 1, 1 - 0.35 * (index % 2), 1 - 0.25 * (index % 3))
    return (round(255 * red), round(255 * green), round(255 * blue))


def _integer(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{value!r} is not an integer")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the name {value!r} is no text")
    return value


def _color(value: Iterable[object]) -> Color:
    channels = tuple(_integer(channel) for channel in value)
    if len(channels) != 3 or not all(0 <= channel <= 255 for channel in channels):
        raise ValueError(f"color {list(channels)} is not three values in 0..255")
    return (channels[0], channels[1], channels[2])


def _listed(values: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(map(str, values[:most]))
    return f"{shown}, ..." if len(values) > most else shown
