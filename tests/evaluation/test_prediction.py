import errno
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from gpseg.data import Classes, PartClass
from gpseg.errors import InputError, RunError
from gpseg.evaluation import prediction
from gpseg.evaluation.prediction import PredictConfig, predict
from gpseg.training.run_folder import Interrupted

CLASSES = Classes(
    (
        PartClass(0, "background", (0, 0, 0)),
        PartClass(1, "bright", (250, 0, 0)),
        PartClass(2, "reddish", (0, 0, 250)),
    )
)
RESOLUTION = 16


class ByBrightness:
    """Stands in for a segmenter: bright pixels are class 1, red ones class 2."""

    classes = CLASSES
    resolution = RESOLUTION

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.flips: list[bool] = []

    def probabilities(
        self, images: Tensor, readout: str | None = None, *, flip: bool = True
    ) -> Tensor:
        assert images.dtype == torch.uint8
        assert images.shape[1:] == (3, RESOLUTION, RESOLUTION)
        self.batches.append(len(images))
        self.flips.append(flip)
        red, green, _ = (images.float() / 255).unbind(1)
        bright = torch.minimum(red, green)
        reddish = red - bright
        return torch.stack([1 - bright - reddish, bright, reddish], 1)


def halves(width: int, height: int) -> Image.Image:
    """Black on the left, white on the right."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, width // 2 :] = 255
    return Image.fromarray(pixels)


def run(images: list[Path], out: Path, **options: object) -> list[Path]:
    config = PredictConfig(Path("none"), images, out, **options)  # type: ignore[arg-type]
    return predict(config, ByBrightness())  # type: ignore[arg-type]


def ids(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "P"
        assert image.getpalette()[3:6] == [250, 0, 0]
        return np.array(image)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("size", [(40, 30), (7, 90), (16, 16), (5, 3), (1, 1)])
def test_masks_have_the_size_of_their_images(photos: Path, tmp_path: Path, size) -> None:
    halves(*size).save(photos / "a.png")
    (mask,) = run([photos], tmp_path / "out")
    assert mask == tmp_path / "out" / "a.png"
    assert ids(mask).shape == size[::-1]


def test_parts_lie_where_they_are_in_the_image(photos: Path, tmp_path: Path) -> None:
    halves(128, 64).save(photos / "a.png")
    (mask,) = run([photos], tmp_path / "out")
    expected = np.zeros((64, 128), dtype=np.uint8)
    expected[:, 64:] = 1
    assert (ids(mask) == expected).mean() > 0.99


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.png"), ("RGBA", "a.png"), ("P", "a.gif"), ("I;16", "a.png"), ("CMYK", "a.jpg")],
)
def test_images_of_any_mode(photos: Path, tmp_path: Path, mode: str, name: str) -> None:
    image = halves(32, 32)
    if mode == "I;16":
        image = Image.fromarray((np.asarray(image.convert("L")).astype(np.uint16)) * 257)
    else:
        image = image.convert(mode)
    image.save(photos / name)
    (mask,) = run([photos / name], tmp_path / "out")
    assert ids(mask)[16, [4, 28]].tolist() == [0, 1]


def test_exif_rotation_is_applied_to_the_mask(photos: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown a quarter turn clockwise: the left half comes to the top
    halves(600, 400).save(photos / "a.jpg", exif=exif)
    (mask,) = run([photos], tmp_path / "out")
    found = ids(mask)
    assert found.shape == (600, 400)
    assert found[[100, 500], 200].tolist() == [0, 1]


def test_a_jpeg_decoded_small_still_gives_a_mask_of_full_size(photos: Path, tmp_path: Path) -> None:
    halves(1001, 667).save(photos / "a.jpg")
    (mask,) = run([photos], tmp_path / "out")
    found = ids(mask)
    assert found.shape == (667, 1001)
    assert found[300, [400, 600]].tolist() == [0, 1]


def test_overlay_tints_parts_and_leaves_the_background(photos: Path, tmp_path: Path) -> None:
    halves(64, 64).save(photos / "a.png")
    run([photos], tmp_path / "out", overlay=True)
    with Image.open(tmp_path / "out" / "overlays" / "a.jpg") as image:
        pixels = np.asarray(image).astype(int)
    assert pixels.shape == (64, 64, 3)
    assert abs(pixels[32, 4] - [0, 0, 0]).max() < 12
    assert abs(pixels[32, 60] - [252, 127, 127]).max() < 12


def test_probabilities_are_of_the_images_size_and_name_the_classes(
    photos: Path, tmp_path: Path
) -> None:
    halves(50, 20).save(photos / "a.png")
    (mask,) = run([photos], tmp_path / "out", probabilities=True)
    with np.load(tmp_path / "out" / "probabilities" / "a.npz") as content:
        probabilities, names = content["probabilities"], content["names"]
    assert probabilities.dtype == np.float16
    assert probabilities.shape == (3, 20, 50)
    assert names.tolist() == ["background", "bright", "reddish"]
    assert np.allclose(probabilities.sum(0), 1, atol=0.01)
    assert (probabilities.argmax(0) == ids(mask)).mean() > 0.95


def test_links_to_one_file_each_get_a_mask_and_a_path_given_twice_gets_one(
    photos: Path, tmp_path: Path
) -> None:
    halves(8, 8).save(tmp_path / "kept.png")
    for name in ("a.png", "b.png"):
        (photos / name).symlink_to(tmp_path / "kept.png")
    written = run([photos, photos / "a.png"], tmp_path / "out")
    assert sorted(path.name for path in written) == ["a.png", "b.png"]


def test_masks_are_not_written_among_images_or_labels(photos: Path, tmp_path: Path) -> None:
    halves(20, 20).save(photos / "a.jpg")
    with pytest.raises(InputError, match="holds images to predict"):
        run([photos], photos)
    (tmp_path / "set" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="is for masks to train on"):
        run([photos], tmp_path / "set" / "masks")
    assert [path.name for path in photos.iterdir()] == ["a.jpg"]


def test_goes_in_batches_and_reads_no_further_than_one_batch_ahead(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(7):
        halves(20, 20).save(photos / f"{index}.png")
    read: list[Path] = []
    original = prediction.read_square
    monkeypatch.setattr(prediction, "read_square", lambda p, r: read.append(p) or original(p, r))
    segmenter = ByBrightness()
    ahead: list[int] = []
    answer = segmenter.probabilities

    def watched(images: Tensor, readout: str | None = None, *, flip: bool = True) -> Tensor:
        ahead.append(len(read))
        return answer(images)

    segmenter.probabilities = watched  # type: ignore[method-assign]
    config = PredictConfig(Path("none"), [photos], tmp_path / "out", batch=2)
    written = predict(config, segmenter)  # type: ignore[arg-type]
    assert segmenter.batches == [2, 2, 2, 1]
    assert [path.name for path in written] == [f"{index}.png" for index in range(7)]
    assert all(count <= 2 * (turn + 2) for turn, count in enumerate(ahead))


def test_the_mirror_image_is_asked_for(photos: Path, tmp_path: Path) -> None:
    halves(40, 30).save(photos / "a.png")
    segmenter = ByBrightness()
    for flip in (False, True):
        config = PredictConfig(Path("none"), [photos], tmp_path / f"out-{flip}", flip=flip)
        predict(config, segmenter)  # type: ignore[arg-type]
    assert segmenter.flips == [False, True]


def test_folders_patterns_and_files_together_each_image_once(photos: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.png"):
        halves(20, 20).save(photos / name)
    written = run([photos / "c.png", photos / "*.png", photos], tmp_path / "out")
    assert [path.stem for path in written] == ["c", "a", "b"]


def test_equal_names_in_different_folders_are_kept_apart(photos: Path, tmp_path: Path) -> None:
    for person in ("ann", "bob"):
        (photos / person).mkdir()
        halves(20, 20).save(photos / person / "1.png")
    written = run([photos / "**" / "*.png"], tmp_path / "out", overlay=True)
    assert written == [tmp_path / "out" / "ann" / "1.png", tmp_path / "out" / "bob" / "1.png"]
    assert (tmp_path / "out" / "overlays" / "bob" / "1.jpg").is_file()


def test_equal_names_in_one_folder_are_refused(photos: Path, tmp_path: Path) -> None:
    halves(20, 20).save(photos / "a.png")
    halves(20, 20).save(photos / "a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg and a\.png would both get the mask a\.png"):
        run([photos], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_overwritten(photos: Path, overwrite: bool) -> None:
    halves(20, 20).save(photos / "a.png")
    before = (photos / "a.png").read_bytes()
    with pytest.raises(InputError, match=r"a\.png is one of the images"):
        run([photos], photos, overwrite=overwrite)
    assert (photos / "a.png").read_bytes() == before


def test_existing_outputs_are_replaced_only_on_request(photos: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        halves(20, 20).save(photos / name)
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.png").write_text("precious")
    with pytest.raises(InputError, match=r"b\.png already exists.*--overwrite"):
        run([photos], out)
    assert [path.name for path in out.iterdir()] == ["b.png"]
    assert (out / "b.png").read_text() == "precious"
    run([photos], out, overwrite=True)
    assert ids(out / "b.png").shape == (20, 20)


def test_resume_does_what_is_left(photos: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        halves(20, 20).save(photos / name)
    out = tmp_path / "out"
    run([photos / "a.png"], out)
    assert run([photos], out, resume=True) == [out / "b.png"]
    assert run([photos], out, resume=True) == []
    # A mask whose overlay is missing is not done.
    assert len(run([photos], out, resume=True, overlay=True)) == 2


def test_unreadable_images_are_named_and_the_rest_is_done(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(5):
        halves(40, 40).save(photos / f"{index}.png")
    (photos / "1.png").write_text("no image")
    whole = (photos / "3.png").read_bytes()
    (photos / "3.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"2 of 5 images could not be read.*other 3"):
        run([photos], tmp_path / "out", batch=1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["0.png", "2.png", "4.png"]
    lines = [line for line in capsys.readouterr().err.splitlines() if "skipped:" in line]
    assert len(lines) == 2
    assert "1.png" in lines[0]
    assert "3.png" in lines[1]


def test_a_full_disk_leaves_whole_files_only(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        halves(40, 40).save(photos / f"{index}.png")
    original = Classes.write_mask

    def write_mask(self: Classes, mask: np.ndarray, path: Path) -> None:
        original(self, mask, path)
        if "1.png" in path.name:
            path.write_bytes(path.read_bytes()[:20])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Classes, "write_mask", write_mask)
    with pytest.raises(RunError, match=r"1\.png: the disk is full.*--resume"):
        run([photos], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"]
    monkeypatch.undo()
    assert len(run([photos], tmp_path / "out", resume=True)) == 2


def test_ctrl_c_leaves_whole_files_and_says_how_to_go_on(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(3):
        halves(40, 40).save(photos / f"{index}.png")
    original = Classes.write_mask

    def write_mask(self: Classes, mask: np.ndarray, path: Path) -> None:
        original(self, mask, path)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Classes, "write_mask", write_mask)
    with pytest.raises(Interrupted) as caught:
        run([photos], tmp_path / "out")
    assert caught.value.folder == tmp_path / "out"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["0.png"]


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ([], {}, "--images"),
        (["nowhere.png"], {}, r"nowhere\.png does not exist"),
        (["*.png"], {}, "no image"),
        (["empty"], {}, "holds no images"),
        (["a.jpg"], {"batch": 0}, "--batch 0"),
        (["a.jpg"], {"overwrite": True, "resume": True}, "give one of them"),
        (["a.jpg"], {"out": "a.jpg"}, "is one of the images|is not a folder"),
        (["a.jpg"], {"out": "a.jpg/masks"}, "is not a folder"),
    ],
)
def test_wrong_options_write_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: list[str], options: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    halves(20, 20).save(tmp_path / "a.jpg")
    out = Path(options.pop("out", "out"))
    with pytest.raises(InputError, match=message):
        run([Path(image) for image in images], out, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "empty"]
