"""Reading images of any kind, fitting them to a square, and bringing results back."""

import os
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gpseg.data import (
    Placement,
    UnlabelledImages,
    fit_square,
    images,
    load_images,
    read_image,
    read_square,
)
from gpseg.errors import InputError


def _save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def _pixel(path: Path) -> tuple[int, ...]:
    image = read_image(path)
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[0, 0].tolist())


def test_modes_become_rgb(tmp_path: Path) -> None:
    grey = _save(tmp_path / "grey.png", Image.new("L", (3, 2), 77))
    assert _pixel(grey) == (77, 77, 77)
    clear = _save(tmp_path / "clear.png", Image.new("RGBA", (3, 2), (9, 9, 9, 0)))
    assert _pixel(clear) == (255, 255, 255)
    half = _save(tmp_path / "half.png", Image.new("LA", (3, 2), (0, 128)))
    assert _pixel(half) == (127, 127, 127)
    indexed = Image.new("P", (3, 2), 5)
    indexed.putpalette([value for index in range(256) for value in (index, 2 * index % 256, 3)])
    assert _pixel(_save(tmp_path / "indexed.png", indexed)) == (5, 10, 3)
    transparent = _save(tmp_path / "transparent.png", indexed, transparency=5)
    assert _pixel(transparent) == (255, 255, 255)
    cmyk = _save(tmp_path / "cmyk.tif", Image.new("CMYK", (3, 2), (0, 255, 255, 0)))
    assert _pixel(cmyk) == (255, 0, 0)
    bits = _save(tmp_path / "bits.png", Image.new("1", (3, 2), 1))
    assert _pixel(bits) == (255, 255, 255)


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (0x8080, np.uint16, 128),
        (200, np.uint16, 1),
        (200, np.dtype(">u2"), 1),
        (128, np.int32, 128),
        (0x8080, np.int32, 128),
        (0.5, np.float32, 128),
        (77.0, np.float32, 77),
    ],
)
def test_more_than_8_bits_are_scaled(
    tmp_path: Path, value: float, dtype: type, expected: int
) -> None:
    deep = Image.fromarray(np.full((2, 3), value, dtype=dtype))
    assert _pixel(_save(tmp_path / "deep.tif", deep)) == (expected,) * 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_sizes_are_those_displayed(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _save(tmp_path / f"photo.{suffix}", Image.new("RGB", (40, 24)), exif=exif)
    wanted = (24, 40) if orientation > 4 else (40, 24)
    assert images.image_size(path) == read_image(path).size == wanted


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10), "red")
    image.paste("blue", (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the scene is at the right of the stored picture
    path = _save(tmp_path / "turned.png", image, exif=exif)
    upright = read_image(path)
    assert upright.size == (10, 30)
    assert upright.getpixel((5, 2)) == (0, 0, 255)


def test_jpeg_decoded_in_draft_is_the_same_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ramp = np.linspace(0, 255, 512, dtype=np.uint8)
    pixels = np.stack([np.tile(ramp, (512, 1)), np.tile(ramp[:, None], (1, 512))] * 2, axis=-1)
    path = _save(tmp_path / "ramp.jpg", Image.fromarray(pixels[..., :3].copy()), quality=95)
    read = []
    original = images._upright
    monkeypatch.setattr(
        images, "_upright", lambda image: read.append(image.size) or original(image)
    )
    drafted, _ = read_square(path, 32)
    fitted, _ = fit_square(read_image(path), 32)
    assert read == [(64, 64), (512, 512)]
    assert (fitted.int() - drafted.int()).abs().max() <= 3


@pytest.mark.parametrize("size", [(1540, 1021), (847, 994), (994, 847)])
@pytest.mark.parametrize("turn", [1, 6])
def test_jpeg_decoded_in_draft_lies_where_its_mask_does(
    tmp_path: Path, size: tuple[int, int], turn: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    path = _save(tmp_path / "photo.jpg", Image.new("RGB", size), exif=exif)
    width, height = size if turn == 1 else size[::-1]
    _, placement = read_square(path, 64)
    assert placement == Placement.centred(width, height, 64)


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (8, 40), (3, 5), (200, 1), (1, 1)])
def test_fit_keeps_aspect_and_replicates_edges(size: tuple[int, int]) -> None:
    width, height = size
    image = Image.new("RGB", size, (10, 20, 30))
    fitted, placement = fit_square(image, 16)
    assert fitted.shape == (3, 16, 16)
    assert fitted.dtype == torch.uint8
    assert (fitted == torch.tensor([10, 20, 30])[:, None, None]).all()
    assert max(placement.fitted_width, placement.fitted_height) == 16
    aspect = placement.fitted_width / placement.fitted_height
    assert abs(aspect - width / height) < 0.5 or min(size) == 1


def test_shrinking_averages_instead_of_skipping() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    fitted, _ = fit_square(Image.fromarray(stripes), 16)
    assert (fitted.int() - 127).abs().max() <= 8


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 90),
    height=st.integers(1, 90),
    resolution=st.sampled_from([8, 16, 32]),
    slope=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_placement_round_trip(
    width: int, height: int, resolution: int, slope: tuple[float, float]
) -> None:
    placement = Placement.centred(width, height, resolution)

    def ramp(columns: int, rows: int) -> torch.Tensor:
        x = (torch.arange(columns) + 0.5) / columns
        y = (torch.arange(rows) + 0.5) / rows
        return slope[0] * x[None, :] + slope[1] * y[:, None]

    square = torch.full((2, resolution, resolution), 50.0)  # a border that must not leak in
    (above, _), (left, _) = placement.border
    inside = ramp(placement.fitted_width, placement.fitted_height)
    square[
        :,
        above : above + placement.fitted_height,
        left : left + placement.fitted_width,
    ] = inside
    restored = placement.restore(square)
    assert restored.shape == (2, height, width)
    # Bilinear sampling is exact on a ramp but for half a fitted pixel at the edges.
    slack = (0.5 + 1e-4) * (
        abs(slope[0]) * max(1 / placement.fitted_width, 1 / width)
        + abs(slope[1]) * max(1 / placement.fitted_height, 1 / height)
    )
    assert (restored - ramp(width, height)).abs().max() <= slack + 1e-5


def test_restore_keeps_probabilities_summing_to_one() -> None:
    probabilities = torch.rand(4, 5, 16, 16).softmax(dim=1)
    restored = Placement.centred(37, 23, 16).restore(probabilities)
    assert restored.shape == (4, 5, 23, 37)
    torch.testing.assert_close(restored.sum(dim=1), torch.ones(4, 23, 37))


def test_restoring_to_a_smaller_size_averages() -> None:
    stripes = torch.zeros(1, 64, 64)
    stripes[..., ::4] = 1
    restored = Placement.centred(8, 8, 64).restore(stripes)
    assert (restored - 0.25).abs().max() < 0.1


@pytest.fixture
def broken(tmp_path: Path) -> dict[str, Path]:
    """Files that no decoder can make sense of."""
    whole = tmp_path / "whole.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    files = {
        "truncated.jpg": whole.read_bytes()[:1500],
        "truncated.png": (tmp_path / "whole.png").read_bytes()[:3000],
        "empty.png": b"",
        "text.jpg": b"not an image",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in [*files, "absent.png"]}


@pytest.mark.parametrize(
    "name", ["truncated.jpg", "truncated.png", "empty.png", "text.jpg", "absent.png"]
)
def test_unreadable_images_are_named(broken: dict[str, Path], name: str) -> None:
    path = broken[name]
    readable = path.parent / "whole.jpg"
    for read in (
        lambda: read_image(path),
        lambda: load_images([readable, path, readable], 8),
        lambda: UnlabelledImages([readable, path], 8),
    ):
        with pytest.raises(InputError, match=re.escape(str(path))) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_oversized_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _save(tmp_path / "huge.png", Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match=r"huge\.png has more than 0 million pixels; make it"):
        read_image(path)


def test_all_images_that_cannot_be_read_are_logged(
    broken: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    whole = broken["empty.png"].parent / "whole.jpg"
    sources = [whole, broken["text.jpg"], whole, broken["empty.png"], broken["absent.png"]]
    with pytest.raises(
        InputError, match=r"text\.jpg .*\(and 2 more images, listed above\)"
    ) as caught:
        load_images(sources, 8)
    assert "\n" not in str(caught.value)
    named = [record.getMessage().split(" ")[0] for record in caplog.records]
    assert named == [str(broken[name]) for name in ("text.jpg", "empty.png", "absent.png")]


def test_images_are_read_in_order_and_not_far_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []

    def load(source: Path, resolution: int) -> tuple[torch.Tensor, Placement]:
        read.append(source)
        image = torch.full((3, resolution, resolution), int(source.name), dtype=torch.uint8)
        return image, Placement.centred(1, 1, resolution)

    monkeypatch.setattr(images, "read_square", load)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    stream = images.stream_images([Path(str(i)) for i in range(200)], 2, start=5)
    assert [int(next(stream)[0, 0, 0]) for _ in range(3)] == [5, 6, 7]
    time.sleep(0.05)
    assert len(read) <= 3 + 8 + 1  # those taken, four for each thread, one that is waited for
    assert [int(image[0, 0, 0]) for image in stream] == list(range(8, 200))
    assert len(read) == 195
