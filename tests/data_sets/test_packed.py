"""Packed images: the same as read one by one, whatever happened to the file, the folder or the process."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpseg.atomic import is_disk_full
from gpseg.data import (
    Placement,
    UnlabelledImages,
    batches_ahead,
    load_images,
    packed,
    training_images,
)
from gpseg.data import images as module
from gpseg.errors import InputError, RunError
from gpseg.processes import in_fresh_process
from gpseg.selftest.memory import can_measure, peak_rise
from tests.data_sets.archives import zipped

CPU = torch.device("cpu")


def write_images(folder: Path, count: int, size: int = 8) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for index in range(count):
        pixels = rng.integers(0, 256, (size + index % 3, size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:04}.png")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, used however few the images are."""
    monkeypatch.setattr(packed, "_SMALL", -1)
    monkeypatch.setenv("GPSEG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are read from now on."""
    names: list[str] = []
    load = module.read_square

    def counted(source: Path, resolution: int) -> tuple[torch.Tensor, Placement]:
        names.append(Path(str(source)).name)
        return load(source, resolution)

    monkeypatch.setattr(module, "read_square", counted)
    return names


def files(cache: Path, suffix: str = ".npy") -> list[Path]:
    return sorted(cache.glob(f"*{suffix}"))


def test_packed_images_are_those_read_one_by_one(tmp_path: Path, cache: Path) -> None:
    paths = training_images(write_images(tmp_path / "images", 12))
    images, expected = UnlabelledImages(paths, 16), load_images(paths, 16)
    assert len(images) == 12
    for indices in (torch.tensor([3, 0, 3, 11]), [5], [], torch.empty(0, dtype=torch.long)):
        chosen = images[indices]
        assert chosen.dtype == torch.uint8
        assert chosen.is_contiguous()
        assert chosen.equal(expected[torch.as_tensor(indices, dtype=torch.long)])
    with pytest.raises(IndexError):
        images[[12]]
    images[[0]].fill_(0)
    assert images[[0]].equal(expected[:1])
    assert np.array_equal(np.load(files(cache)[0]), expected.numpy())


def test_few_images_stay_in_memory(tmp_path: Path, cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(packed, "_SMALL", 10_000)
    paths = training_images(write_images(tmp_path / "images", 12))
    images = UnlabelledImages(paths, 16)  # 9 KiB of pixels
    assert not cache.exists()
    assert images[[3]].equal(load_images(paths[3:4], 16))
    UnlabelledImages(paths, 32)
    assert len(files(cache)) == 1
    (tmp_path / "images" / "0003.png").write_bytes(bytes(10_000))
    with pytest.raises(InputError, match=r"0003\.png"):  # large files take long: packed
        UnlabelledImages(paths, 16)
    assert len(files(cache, ".lock")) == 2


def test_a_later_run_reads_no_image(tmp_path: Path, cache: Path, read: list[str]) -> None:
    folder = write_images(tmp_path / "images", 5)
    first = UnlabelledImages(training_images(folder), 16)
    assert len(read) == 5
    assert UnlabelledImages(training_images(folder), 16)[range(5)].equal(first[range(5)])
    assert len(read) == 5
    archive = zipped(folder)
    for _ in range(2):
        assert UnlabelledImages(training_images(archive), 16)[range(5)].equal(first[range(5)])
    assert len(read) == 10


def touch(folder: Path) -> None:
    os.utime(folder / "0001.png", (1e9, 1e9))


def rewrite(folder: Path) -> None:
    Image.new("RGB", (5, 5), "red").save(folder / "0001.png")


@pytest.mark.parametrize(
    "change",
    [
        touch,
        rewrite,
        lambda folder: (folder / "0001.png").unlink(),
        lambda folder: (folder / "0001.png").rename(folder / "9.png"),
        lambda folder: write_images(folder, 6),
    ],
)
@pytest.mark.parametrize("in_zip", [False, True])
def test_what_changed_is_packed_anew(
    tmp_path: Path, cache: Path, change: Callable[[Path], object], in_zip: bool
) -> None:
    folder = write_images(tmp_path / "images", 5)
    where = zipped(folder) if in_zip else folder
    UnlabelledImages(training_images(where), 16)
    change(folder)
    if in_zip:
        zipped(folder)
    sources = training_images(where)
    images = UnlabelledImages(sources, 16)
    assert images[range(len(sources))].equal(load_images(sources, 16))
    # A zip file tells contents, not times.
    assert len(files(cache)) == (1 if in_zip and change is touch else 2)
    UnlabelledImages(sources, 32)
    assert len(files(cache)) == (2 if in_zip and change is touch else 3)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthen(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        lengthen,
        lambda path: os.truncate(path, 7),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: np.save(path, np.zeros((5, 16, 16, 3), np.uint8)),
        lambda path: np.save(path, np.zeros((5, 3, 16, 16), np.int8)),
        lambda path: np.save(path, np.array([{}], dtype=object), allow_pickle=True),
        lambda path: path.unlink(),
    ],
)
def test_a_spoilt_file_is_made_anew(
    tmp_path: Path, cache: Path, spoil: Callable[[Path], object]
) -> None:
    paths = training_images(write_images(tmp_path / "images", 5))
    UnlabelledImages(paths, 16)
    spoil(files(cache)[0])
    assert UnlabelledImages(paths, 16)[range(5)].equal(load_images(paths, 16))
    assert len(files(cache)) == 1


@pytest.mark.parametrize("left", [0, 5, 128, 128 + 2 * 768, 128 + 2 * 768 + 100, 128 + 9 * 768])
@pytest.mark.parametrize("foreign", [False, True])
def test_packing_goes_on_from_whole_images(
    tmp_path: Path, cache: Path, read: list[str], left: int, foreign: bool
) -> None:
    paths = training_images(write_images(tmp_path / "images", 5))
    UnlabelledImages(paths, 16)
    expected = load_images(paths, 16)
    whole = files(cache)[0]
    content = b"x" * 9000 if foreign else whole.read_bytes() + bytes(9000)
    whole.with_suffix(".part").write_bytes(content[:left])
    whole.unlink()
    read.clear()
    assert UnlabelledImages(paths, 16)[range(5)].equal(expected)
    kept = 0 if foreign or left < 128 else min(5, (left - 128) // 768)
    assert len(read) == 5 - kept
    assert not files(cache, ".part")


PACKER = """
import logging, sys, time
from gpseg.data import UnlabelledImages, images, packed, training_images
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
packed._SMALL = -1
load, hang_from = images.read_square, sys.argv[2]
def counted(source, resolution):
    if source.name >= hang_from:
        time.sleep(1000)
    print("<read>", flush=True)
    return load(source, resolution)
images.read_square = counted
print("ready", flush=True)
input()
found = UnlabelledImages(training_images(sys.argv[1]), 64)
print("sum", int(found[range(len(found))].long().sum()), flush=True)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start processes that pack a folder as soon as they get a line, and hang at an image of a given name or later."""
    runs: list[subprocess.Popen[str]] = []

    def starting(folder: Path, hang_from: str = "hang never") -> subprocess.Popen[str]:
        run = subprocess.Popen(
            [sys.executable, "-c", PACKER, str(folder), hang_from],
            env={**os.environ, "PYTHONPATH": str(Path(packed.__file__).parents[2])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        runs.append(run)
        return run

    yield starting
    for run in runs:
        run.kill()
        run.communicate()


def say(run: subprocess.Popen[str], line: str) -> None:
    assert run.stdin is not None
    run.stdin.write(f"{line}\n")
    run.stdin.flush()


def wait_for(run: subprocess.Popen[str], what: str) -> None:
    assert run.stdout is not None
    assert any(what in line for line in iter(run.stdout.readline, ""))


def total(folder: Path) -> str:
    return f"sum {int(load_images(training_images(folder), 64).long().sum())}"


def test_a_killed_process_neither_spoils_nor_blocks(tmp_path: Path, cache: Path, start) -> None:
    folder = write_images(tmp_path / "images", 20)
    killed, waiting = start(folder, "0006.png"), start(folder)
    for run, what in ((killed, "packing 20 images"), (waiting, "waiting")):
        wait_for(run, "ready")
        say(run, "go")
        wait_for(run, what)
    while sum(path.stat().st_size for path in files(cache, ".part")) < 128 + 6 * 3 * 64 * 64:
        assert killed.poll() is None
        time.sleep(0.01)
    killed.kill()
    said = waiting.communicate(timeout=60)[0]
    assert said.count("<read>") == 14  # of 20, 6 were there
    assert said.splitlines()[-1] == total(folder)
    assert not files(cache, ".part")


def test_of_processes_that_start_at_once_one_packs(tmp_path: Path, cache: Path, start) -> None:
    folder = write_images(tmp_path / "images", 50)
    runs = [start(folder) for _ in range(2)]
    for run in runs:
        wait_for(run, "ready")
    for run in runs:
        say(run, "go")
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert sorted(text.count("<read>") for text in said) == [0, 50]
    assert {text.splitlines()[-1] for text in said} == {total(folder)}


def test_an_interruption_is_gone_on_from(
    tmp_path: Path, cache: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = training_images(write_images(tmp_path / "images", 40))
    stream = packed.stream_images

    def interrupted(*args, **options):
        for index, image in enumerate(stream(*args, **options)):
            if index == 4:
                raise KeyboardInterrupt
            yield image

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packed, "stream_images", interrupted)
        UnlabelledImages(paths, 16)
    read.clear()
    assert UnlabelledImages(paths, 16)[range(40)].equal(load_images(paths, 16))
    assert read[:1] == ["0004.png"]


def test_unreadable_images_leave_nothing_behind(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_images(tmp_path / "images", 8)
    for name in ("0002.png", "0006.png"):
        (folder / name).write_bytes(b"no image")
    for _ in range(2):
        caplog.clear()
        with pytest.raises(InputError, match=r"0002\.png is not an image .*and 1 more"):
            UnlabelledImages(training_images(folder), 16)
        assert "0006.png is not an image" in caplog.text
        assert not files(cache) + files(cache, ".part")
    write_images(folder, 8)
    assert len(UnlabelledImages(training_images(folder), 16)) == 8


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_full_disk_is_one_line_that_says_what_to_do(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    paths = training_images(write_images(tmp_path / "images", 100, size=64))

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if when == "before":
            usage = packed.shutil.disk_usage("/")._replace(free=100)
            patch.setattr(packed.shutil, "disk_usage", lambda path: usage)
        else:
            patch.setattr(packed.os, "fsync", full)
        with pytest.raises(RunError, match=r"disk is full; .*GPSEG_CACHE .* 1 MiB") as caught:
            UnlabelledImages(paths, 64)
    assert is_disk_full(caught.value)
    assert "\n" not in str(caught.value)
    assert str(cache) in str(caught.value)
    assert not files(cache) + files(cache, ".part")
    assert len(UnlabelledImages(paths, 64)) == 100


def test_a_cache_that_cannot_be_made_is_one_line(tmp_path: Path, cache: Path, monkeypatch) -> None:
    paths = training_images(write_images(tmp_path / "images", 3))
    (tmp_path / "file").touch()
    monkeypatch.setenv("GPSEG_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(InputError, match=r"file/below can't be used .*set GPSEG_CACHE") as caught:
        UnlabelledImages(paths, 16)
    assert "\n" not in str(caught.value)


def test_a_cache_that_may_only_be_read_serves_what_it_holds(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = training_images(write_images(tmp_path / "images", 3))
    UnlabelledImages(paths, 16)

    def refused(*args: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(packed.os, "utime", refused)
    monkeypatch.setattr(packed, "_locked", refused)
    assert len(UnlabelledImages(paths, 16)) == 3
    with pytest.raises(
        InputError, match=r"cache can't be used \(Permission denied\); set GPSEG_CACHE"
    ):
        UnlabelledImages(paths[1:], 16)


def test_whatever_is_left_out_one_file_serves(tmp_path: Path, cache: Path) -> None:
    paths = training_images(write_images(tmp_path / "images", 6))
    expected = load_images(paths, 16)
    for left_out in ([], [paths[0], paths[3]], [paths[5], tmp_path / "another.png"]):
        images = UnlabelledImages(paths, 16, left_out)
        kept = [row for row, path in enumerate(paths) if path not in left_out]
        assert len(images) == len(kept)
        assert images[range(len(kept))].equal(expected[kept])
        with pytest.raises(IndexError):
            images[[len(kept)]]
    assert len(files(cache)) == 1


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.delenv("GPSEG_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert packed.cache_folder() == Path("/home/somebody/.cache/gpseg")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert packed.cache_folder() == Path("/caches/gpseg")
    monkeypatch.setenv("GPSEG_CACHE", "~/large")
    assert packed.cache_folder() == Path("/home/somebody/large")


def test_what_was_not_used_for_a_month_goes(tmp_path: Path, cache: Path) -> None:
    kept, other, stale = (write_images(tmp_path / name, 3) for name in ("kept", "other", "stale"))
    for folder in (stale, kept):
        UnlabelledImages(training_images(folder), 16)
    (cache / "notes.txt").touch()
    month_ago = time.time() - 31 * 86400
    for path in cache.iterdir():
        os.utime(path, (month_ago, month_ago))
    UnlabelledImages(training_images(kept), 16)  # in use again
    assert len(files(cache)) == 2
    UnlabelledImages(training_images(other), 16)
    assert len(files(cache)) == 2
    assert (cache / "notes.txt").exists()


def test_images_that_stay_in_memory_are_not_made_ahead(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert batches_ahead(torch.zeros(1, 3, 4, 4)) == 0
    images = UnlabelledImages(training_images(write_images(tmp_path / "images", 3)), 16)
    assert batches_ahead(images) == 0
    monkeypatch.setattr(packed, "_memory", lambda: 2 * 3 * 768 - 1)
    assert batches_ahead(images) > 0


def pack_and_draw(paths: list[Path], cache: Path) -> None:
    shutil.rmtree(cache, ignore_errors=True)
    images = UnlabelledImages(paths, 64, progress=False)
    for start in range(0, len(images), 500):
        images[range(start, start + 4)]


def rise_of_packing(paths: list[Path], cache: Path) -> int:
    packed._SMALL = -1
    os.environ["GPSEG_CACHE"] = str(cache)
    return peak_rise(lambda: pack_and_draw(paths, cache), CPU)


@pytest.mark.skipif(not can_measure(CPU), reason="this system does not tell the peak of memory")
def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    paths = training_images(write_images(tmp_path / "images", 30, size=2)) * 100
    rise = in_fresh_process(rise_of_packing, paths, tmp_path / "cache")
    assert rise < len(paths) * 3 * 64 * 64 / 4  # bytes
