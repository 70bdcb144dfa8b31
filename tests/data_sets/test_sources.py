"""Where images come from: folders, patterns, files, data sets and zip files."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gpseg.data import images_in, load_images, sources, training_images
from gpseg.errors import InputError
from tests.data_sets.archives import zipped


def test_images_in_folder_pattern_and_file(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", ".hidden.png", "notes.txt", "deep/c.png", "brackets[1].png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    names = [path.name for path in images_in(tmp_path)]
    assert names == ["a.JPG", "b.png", "brackets[1].png"]
    assert images_in(tmp_path / "*.png") == [tmp_path / "b.png", tmp_path / "brackets[1].png"]
    assert [path.name for path in images_in(f"{tmp_path}/**/c.*")] == ["c.png"]
    assert images_in(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    assert images_in(tmp_path / "brackets[1].png") == [tmp_path / "brackets[1].png"]


def test_images_in_relative_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").touch()
    monkeypatch.chdir(tmp_path)
    assert images_in("*.png") == [Path("a.png")]


def test_images_in_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for path, said in (
        (tmp_path, "holds no images"),
        (tmp_path / "absent", "does not exist"),
        (tmp_path / "*.png", "matches"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            images_in(path)
        assert str(path) in str(caught.value)


def write_image(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(value)
    Image.fromarray(rng.integers(0, 256, (8 + value, 9, 3), dtype=np.uint8)).save(path)


def names(found: list[sources.ImageSource], root: Path) -> list[str]:
    return [str(image).removeprefix(f"{root}/") for image in found]


def test_a_data_set_gives_all_but_its_masks(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for value, name in enumerate(
        ("images/b.png", "images/a.png", "masks/a.png", "unlabelled/c.png")
    ):
        write_image(root / name, value)
    expected = ["unlabelled/c.png", "images/a.png", "images/b.png"]
    assert names(training_images(root), root) == expected
    for below in (".", "set"):
        archive = zipped(root, below)
        inside = archive / below
        assert names(training_images(archive), inside) == expected


def test_a_folder_of_folders_gives_what_lies_below(tmp_path: Path) -> None:
    kept = ("00000/img.png", "00000/more/deep.png", "00001/img.png")
    for value, name in enumerate((*kept, ".thumbnails/img.png", "00000/.hidden.png")):
        write_image(tmp_path / name, value)
    assert names(training_images(tmp_path), tmp_path) == list(kept)
    for masks in ("masks", "00001/Masks"):
        write_image(tmp_path / masks / "img.png", 7)
    assert names(training_images(tmp_path), tmp_path) == list(kept)
    archive = zipped(tmp_path, ".")
    assert [image.path.name for image in training_images(archive)] == [
        Path(name).name for name in kept
    ]
    archive.unlink()
    # masks beside photographs, say, are not to be trained on
    write_image(tmp_path / "direct.png", 9)
    assert names(training_images(tmp_path), tmp_path) == ["direct.png"]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write_image(tmp_path / "set" / "a" / "1.png", 1)
    write_image(tmp_path / "elsewhere" / "2.jfif", 2)
    (tmp_path / "set" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "set")
    assert names(training_images(tmp_path / "set"), tmp_path / "set") == ["a/1.png", "b/2.jfif"]


def test_an_empty_part_of_a_set_is_passed_by(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "1.png", 1)
    (tmp_path / "unlabelled").mkdir()
    assert names(training_images(tmp_path), tmp_path) == ["images/1.png"]


def test_a_folder_without_images_is_named(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(InputError, match="holds no images") as caught:
        training_images(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(InputError, match=r"nowhere\.zip does not exist"):
        training_images(tmp_path / "nowhere.zip")


@pytest.mark.parametrize("suffix", [".zip", ".ZIP"])
def test_a_zip_file_gives_what_its_folder_gives(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "photos"
    # "00/b" and "00-b" sort differently as paths and as text
    kept = ("00-b.png", "00/b.png", "00/deep/c.jpg")
    for value, name in enumerate(kept):
        write_image(folder / "all" / name, value)
    for name in (
        "dataset.json",
        "__MACOSX/00/._b.png",
        "__MACOSX/b.png",
        ".git/x.png",
        "00/.b.png",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image")
    (folder / "folder.png").mkdir()
    archive = zipped(folder).rename(tmp_path / f"renamed{suffix}")
    found = training_images(archive)
    below = training_images(folder / "all" / "**" / "*.*")
    assert names(found, archive / "all") == names(below, folder / "all")
    assert sorted(names(found, archive / "all")) == sorted(kept)
    assert load_images(found, 16).equal(load_images(below, 16))


def rewrite(archive: Path, change: str) -> None:
    """Damage a zip file of one stored entry."""
    content = bytearray(archive.read_bytes())
    if change == "entry":
        content[len(content) // 2] ^= 0xFF
    elif change == "encrypted":
        for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            content[content.index(mark) + flags] |= 1
    elif change == "method":
        for mark, method in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            content[content.index(mark) + method] = 97
    elif change == "truncated":
        content = content[: len(content) // 2]
    elif change == "large":
        at = content.index(b"PK\x01\x02") + 24
        content[at : at + 4] = (3 << 30).to_bytes(4, "little")
    archive.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("entry", r"photos\.zip/00/a\.png .*CRC"),
        ("method", r"photos\.zip/00/a\.png .*compression"),
        ("large", r"photos\.zip/00/a\.png unpacks to 3072 MiB"),
        ("encrypted", r"photos\.zip is encrypted; unpack it"),
        ("truncated", r"photos\.zip is not a zip file"),
    ],
)
def test_a_damaged_zip_file_is_one_line(tmp_path: Path, change: str, said: str) -> None:
    write_image(tmp_path / "photos" / "00" / "a.png", 1)
    archive = tmp_path / "photos.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        file.write(tmp_path / "photos" / "00" / "a.png", "00/a.png")
    assert len(load_images(training_images(archive), 8)) == 1
    rewrite(archive, change)
    with pytest.raises(InputError, match=said) as caught:
        load_images(training_images(archive), 8)
    assert "\n" not in str(caught.value)


def test_a_zip_file_without_images_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "empty.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("notes.txt", "")
    with pytest.raises(InputError, match=r"empty\.zip holds no images"):
        training_images(archive)
    archive.write_bytes(b"")
    with pytest.raises(InputError, match=r"empty\.zip is not a zip file"):
        training_images(archive)


def test_odd_names_in_a_zip_file(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 1)
    archive = tmp_path / "odd.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("/absolute.png", "./here.png", "ä/ö.PNG", "two  spaces.png"):
            file.writestr(zipfile.ZipInfo(name), (tmp_path / "a.png").read_bytes())
    found = training_images(archive)
    assert names(found, archive) == ["absolute.png", "here.png", "two  spaces.png", "ä/ö.PNG"]
    assert len(load_images(found, 8)) == 4
