"""`python -m gpseg.evaluate` from end to end, small: cells, what is continued and refused, and the report."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gpseg.commandline import run
from gpseg.data import PartFolder, write_drawn
from gpseg.evaluation import experiment
from gpseg.evaluation.cells import Cell, Key
from gpseg.evaluation.experiment import EvaluateConfig, evaluate
from gpseg.evaluation.jitter import KINDS
from gpseg.evaluation.metrics import majority_score, percent, score
from gpseg.evaluation.report import signed
from gpseg.evaluation.results import load_held
from gpseg.models.checkpoint import save_generator
from gpseg.models.segmenter import READOUTS
from gpseg.models.stylegan2 import NetworkConfig

NETWORK = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
SMALL = ["--steps", "4", "--labelled-batch", "2", "--unlabelled-batch", "2", "--rival-steps", "2"]
GRID = ["--methods", "unet", "gpseg", "--shots", "1", "3", "--draws", "2"]


def command(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as exit_:
        run("gpseg.evaluate", EvaluateConfig, evaluate, "Evaluate.", arguments)
    return int(exit_.value.code or 0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set `faces`, a generator for it, and a finished comparison `done`."""
    home = tmp_path_factory.mktemp("home")
    write_drawn(home / "faces", 16, labelled=20, unlabelled=6)
    torch.manual_seed(0)
    save_generator(
        home / "generator.safetensors",
        NETWORK.generator(),
        NETWORK.discriminator(),
        NETWORK,
        {"images_seen": 4000},
    )
    assert command([*inputs(home), *SMALL, *GRID, "--out", str(home / "done")]) == 0
    return home


def inputs(home: Path) -> list[str]:
    return ["--data", str(home / "faces"), "--generator", str(home / "generator.safetensors")]


@pytest.fixture
def done(home: Path, tmp_path: Path) -> Path:
    """A copy of the finished comparison."""
    return Path(shutil.copytree(home / "done", tmp_path / "done"))


def results(out: Path) -> dict:
    content: dict = json.loads((out / "results.json").read_text())
    return content


def test_every_method_has_a_row_for_every_draw(done: Path) -> None:
    found = {(row["line"], row["shots"], row["draw"]) for row in results(done)["cells"]}
    ours = ("gpseg", "gpseg-no-flip", *(f"gpseg-{name}" for name in READOUTS if name != "fusion"))
    lines = ("majority", "unet", *ours)
    assert found == {(x, k, draw) for x in lines for k in (1, 3) for draw in (0, 1)}
    for row in results(done)["cells"]:
        assert 0 <= row["miou"] <= 1 and 0 <= row["validation"] <= 1
        assert row["changed"].keys() == KINDS.keys()
        assert row["seed"] == row["draw"] and row["peak_memory_bytes"] > 2**26
        assert row["seconds"] >= row["train_seconds"] and row["images_per_second"] > 0


def test_scores_are_those_of_the_masks_that_are_kept(home: Path, done: Path) -> None:
    parts = PartFolder.open(home / "faces")
    test = load_held(parts, parts.splits.test, 16)
    rows = {(row["line"], row["shots"], row["draw"]): row for row in results(done)["cells"]}
    cell = Cell.read(done / "cells" / "gpseg-3-shot-draw-1.json")
    assert cell.facts["readout"] == "fusion"
    own = score(cell.masks("gpseg"), test.masks, parts.classes)
    assert rows["gpseg", 3, 1]["miou"] == pytest.approx(own.miou)
    labelled = load_held(parts, parts.few_shot(3, 1), 16)
    floor = majority_score(labelled.masks, test.masks, parts.classes)
    assert rows["majority", 3, 1]["miou"] == pytest.approx(floor.miou)


def test_the_report_says_it_all(done: Path) -> None:
    markdown = (done / "results.md").read_text()
    page = (done / "report.html").read_text()
    for text in ("gpseg − unet", "over the floor", "small parts", "pre-trained on 4,000 images"):
        assert text in markdown and text in page
    assert re.search(r"\| gpseg \| 2 \| \d+\.\d ± \d+\.\d \| [+−]\d+\.\d ± \d+\.\d \|", markdown)
    assert (
        "| Progressive beats direct fine-tuning, most at the fewest labels | not measured |"
        in markdown
    )
    assert "One label worth five" in markdown
    assert page.count("<b>worst, 1 shot</b>") == page.count("<b>best, 3 shots</b>") == 1
    brought = {(d["kind"], d["line"], d["shots"]) for d in results(done)["brought"]}
    assert brought == {(x, "unet", k) for x in ("plain", "elsewhere") for k in (1, 3)}
    differences = {(d["kind"], d["line"], d["shots"]) for d in results(done)["differences"]}
    assert ("plain", "unet", 1) in differences and ("plain", "majority", 3) in differences


def test_costs_are_those_of_the_device_that_most_cells_were_computed_on(done: Path) -> None:
    path = done / "cells" / "unet-1-shot-draw-1.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "device": "cuda", "train_seconds": 5e6}))
    assert command(["--out", str(done), "--report-only"]) == 0
    markdown = (done / "results.md").read_text()
    rows = {
        (row["line"], row["shots"], row["draw"]): row["device"] for row in results(done)["cells"]
    }
    assert (rows["unet", 1, 0], rows["unet", 1, 1]) == ("cpu", "cuda")
    cpu = json.loads((done / "cells" / "unet-1-shot-draw-0.json").read_text())["train_seconds"]
    assert re.search(rf"^\| unet \| 2 \|.* \| {cpu:.0f} \| [\d.]+ \| \d+ \|$", markdown, re.M)
    assert (
        "Some cells were computed on cuda; the last three columns are of those on cpu." in markdown
    )


def test_foreign_images_are_held_against_the_floor_on_the_same(done: Path) -> None:
    rows = {
        row["line"]: row for row in results(done)["cells"] if (row["shots"], row["draw"]) == (1, 0)
    }
    for path in (done / "cells").glob("*-draw-1.*"):
        path.unlink()
    assert command(["--out", str(done), "--report-only"]) == 0
    markdown = (done / "results.md").read_text()
    _, _, table = markdown.partition("## As if from another collection, 1 labelled image\n")
    header, unet = (re.search(rf"^\| {start} \|.*", table, re.M) for start in ("mIoU, %", "unet"))
    assert header and unet
    titles, texts = (found[0].strip("| ").split(" | ") for found in (header, unet))
    found = dict(zip(titles, texts, strict=True))
    assert [*found] == [
        "mIoU, %",
        "unchanged",
        "light",
        "colour",
        "background",
        "framing",
        "elsewhere",
    ]
    miou, floor = (rows[line]["changed"]["framing"] for line in ("unet", "majority"))
    assert floor != pytest.approx(rows["majority"]["miou"])
    assert found["framing"] == f"{percent(miou)} ({signed(miou - floor)})"
    assert (
        "| gpseg − unet, unchanged |" in markdown
        and "| gpseg − unet, as if from another collection |" in markdown
    )


@pytest.fixture
def other(home: Path, tmp_path: Path) -> Path:
    """Another collection of drawn faces, whose masks tell head and background apart."""
    folder = write_other(tmp_path / "other", ["skin", "hair", "eyes", "nose", "mouth"])
    write_drawn(tmp_path / "drawn", 16, labelled=9, unlabelled=1, seed=5)
    shutil.copytree(tmp_path / "drawn" / "images", folder / "images")
    (folder / "masks").mkdir()
    for path in (tmp_path / "drawn" / "masks").iterdir():
        ids = np.array(Image.open(path))
        Image.fromarray(np.where(ids == 255, 255, np.minimum(ids, 1))).save(
            folder / "masks" / path.name
        )
    return folder


def write_other(folder: Path, head: list[str]) -> Path:
    folder.mkdir(exist_ok=True)
    classes = [{"id": 0, "name": "background"}, {"id": 1, "name": "head", "of": head}]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))
    return folder


def test_another_collection_is_scored_in_its_own_classes(
    home: Path, other: Path, tmp_path: Path
) -> None:
    options = [*inputs(home), *SMALL, "--methods", "unet", "gpseg", "no-unlabelled"]
    out = tmp_path / "out"
    options += ["--shots", "3", "--draws", "1"]
    options += ["--no-jitter", "--other-data", str(other), "--out", str(out)]
    assert command(options) == 0
    rows = {row["line"]: row for row in results(out)["cells"]}
    masks = Cell.read(out / "cells" / "unet-3-shot-draw-0.json").masks("unet", "other")
    parts = PartFolder.open(other)
    held = load_held(parts, parts.labelled, 16)
    own = score(masks.clamp(max=1), held.masks, parts.classes)
    own_plain = rows["unet"]["miou"]
    assert rows["unet"]["changed"] == {"other": pytest.approx(own.miou)}
    markdown = (out / "results.md").read_text()
    assert "head (skin + hair + eyes + nose + mouth)" in markdown
    assert f"| unet | 1 | {percent(own.miou)} |" in markdown
    assert "| gpseg − unet, the other collection |" in markdown
    assert "<b>worst, other collection, 3 shots</b>" in (out / "report.html").read_text()
    assert {d["kind"] for d in results(out)["differences"]} == {"plain", "other"}
    (alone,) = results(out)["alone"]
    without = rows["no-unlabelled"]["miou"]
    assert alone["line"] == "unet" and alone["value"] == pytest.approx(without - own_plain)
    assert "| no-unlabelled − unet |" in markdown


def test_another_collection_has_to_know_every_part(
    home: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*inputs(home), *SMALL, "--out", str(tmp_path / "out"), "--other-data", str(other)]
    for head, error in (
        (["skin", "hair", "eyes", "mouth"], "nose of the model is in none"),
        (["skin", "ear"], "ear"),
    ):
        write_other(other, head)
        assert command(options) == 2
        assert error in capsys.readouterr().err
    (other / "classes.json").unlink()
    assert command(options) == 2
    assert "has no classes.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_continues_with_what_is_missing(
    home: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = results(done)["cells"]
    computed: list[str] = []
    in_fresh_process = experiment.in_fresh_process

    def counted(function, folder, key, setting):
        computed.append(str(key))
        return in_fresh_process(function, folder, key, setting)

    monkeypatch.setattr(experiment, "in_fresh_process", counted)
    (
        done / "cells" / "gpseg-3-shot-draw-1.json"
    ).unlink()  # as a kill between the two files leaves it
    (done / "cells" / f".x.json.{2**22 + 1}.tmp").touch()
    assert command([*inputs(home), *SMALL, *GRID, "--out", str(done)]) == 0
    assert computed == ["gpseg-3-shot-draw-1"]
    assert not [*(done / "cells").glob(".*")]
    scores = [
        [(row["line"], row["miou"]) for row in rows] for rows in (before, results(done)["cells"])
    ]
    assert scores[0] == scores[1]


def test_other_options_are_refused_in_one_line(
    home: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command([*inputs(home), *SMALL, *GRID, "--out", str(done), "--lr", "0.5"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "has lr = 0.02, not 0.5" in message and "another --out" in message


@pytest.mark.parametrize("kind", ["mask", "image"])
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_cells_of_other_labels_never_mix(
    home: Path,
    done: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    split: str,
) -> None:
    faces = home / "faces"
    parts = PartFolder.open(faces)
    stem = (parts.splits.draws[1] if split == "train" else getattr(parts.splits, split))[-1]
    path = parts.mask_path(stem) if kind == "mask" else parts.image_paths[stem]
    before = path.read_bytes()
    try:
        path.write_bytes(before + b"x")
        assert command([*inputs(home), *SMALL, *GRID, "--out", str(done)]) == 2
    finally:
        path.write_bytes(before)
    message = capsys.readouterr().err.splitlines()[-1]
    assert f"{faces}: its images or masks are not those of the comparison in {done}" in message
    assert "another --out" in message


def test_a_comparison_that_holds_no_hash_of_its_labels_goes_on(home: Path, done: Path) -> None:
    path = done / "setting.json"
    content = json.loads(path.read_text())
    assert len(content.pop("data_sha256")) == 64
    path.write_text(json.dumps(content))
    assert command([*inputs(home), *SMALL, *GRID, "--out", str(done)]) == 0
    assert len(json.loads(path.read_text())["data_sha256"]) == 64


@pytest.mark.parametrize("content", [None, b"", b"junk", b"half"])
def test_a_damaged_cell_is_computed_again(
    home: Path, done: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    before = results(done)["cells"]
    path = done / "cells" / "majority-1-shot-draw-0.npz"
    whole = path.read_bytes()
    path.unlink()
    if content is not None:
        path.write_bytes(whole[: len(whole) // 2] if content == b"half" else content)
    assert command(["--out", str(done), "--report-only"]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"error: {path}: missing or damaged")
    assert command([*inputs(home), *SMALL, *GRID, "--out", str(done)]) == 0
    assert [row["miou"] for row in results(done)["cells"]] == [row["miou"] for row in before]


def test_cells_of_another_reading_never_mix(
    home: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse, out = tmp_path / "coarse.json", tmp_path / "coarse"
    features = {"id": 1, "name": "features", "of": ["eyes", "nose", "mouth"]}
    coarse.write_text(json.dumps({"classes": [{"id": 0}, features]}))
    grid = ["--methods", "gpseg", "--shots", "1", "--draws", "1"]
    arguments = [*inputs(home), *SMALL, *grid, "--classes", str(coarse)]
    assert command([*arguments, "--out", str(out)]) == 0
    cell = Cell.read(out / "cells" / "gpseg-1-shot-draw-0.json")
    counts = cell.counts("gpseg")
    assert counts is not None and counts.shape[1:] == (2, 2)
    parts = PartFolder.open(home / "faces", classes=coarse)
    test = load_held(parts, parts.splits.test, 16)
    assert counts.sum() == (test.masks != 255).sum()
    assert "features (eyes + nose + mouth); ignored: skin, hair" in (out / "results.md").read_text()

    # the same in other words, then something else, of which a report made anew sees nothing
    features["of"] = [3, 4, 5]
    coarse.write_text(json.dumps({"classes": [{"id": 0, "name": "background"}, features]}))
    assert command([*arguments, "--out", str(out)]) == 0
    features["of"] = [3, 4]
    coarse.write_text(json.dumps({"classes": [{"id": 0}, features]}))
    assert command(["--out", str(out), "--report-only"]) == 0
    capsys.readouterr()
    assert command([*arguments, "--out", str(out)]) == 2
    assert "that comparison has classes_sha256 = " in capsys.readouterr().err
    assert command([*arguments, "--out", str(done)]) == 2
    assert "that comparison has classes_sha256 = None" in capsys.readouterr().err
    for path in (done / "cells").glob("*-draw-1.*"):
        shutil.copy(path, out / "cells")
    assert command(["--out", str(out), "--report-only"]) == 2
    assert "computed with other options" in capsys.readouterr().err


def test_what_another_process_finished_is_left_to_it(
    home: Path, done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (done / "cells").glob("*-draw-1.*"):
        path.unlink()
    computed = []

    def meanwhile(run: object, folder: Path, key: Key, setting: object) -> None:
        """Another process finishes all, this cell too, in whose way this one dies."""
        computed.append(key)
        for path in (home / "done" / "cells").glob("*-draw-1.*"):
            shutil.copy(path, folder)
        raise FileNotFoundError("its logs")

    monkeypatch.setattr(experiment, "in_fresh_process", meanwhile)
    assert command([*inputs(home), *SMALL, *GRID, "--out", str(done)]) == 0
    assert len(computed) == 1
    assert {row["draw"] for row in results(done)["cells"]} == {0, 1}


def test_a_cell_of_another_comparison_is_refused(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = done / "cells" / "unet-1-shot-draw-0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "options_sha256": "0"}))
    assert command(["--out", str(done), "--report-only"]) == 2
    assert "unet-1-shot-draw-0.json: computed with other options" in capsys.readouterr().err


def test_what_fails_is_said_and_the_rest_goes_on(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A learning rate that blows up fails gpseg, and gpseg alone."""
    wild = ["--lr", "1e30", "--lr-pretrained", "1e30", "--precision", "fp32"]
    grid = ["--methods", "unet", "gpseg", "--shots", "1", "--draws", "1", "--no-jitter"]
    assert command([*inputs(home), *SMALL, *wild, *grid, "--out", str(tmp_path)]) == 1
    assert "1 cells failed" in capsys.readouterr().err.splitlines()[-1]
    assert {row["line"] for row in results(tmp_path)["cells"]} == {"majority", "unet"}
    (failed,) = results(tmp_path)["failed"]
    assert failed["method"] == "gpseg" and "not finite" in failed["reason"]
    assert "Failed: gpseg-1-shot-draw-0: RunError" in (tmp_path / "results.md").read_text()


def test_the_report_is_made_anew_from_what_is_there(done: Path) -> None:
    for name in ("results.json", "results.md", "report.html"):
        (done / name).unlink()
    for path in (done / "cells").glob("*-draw-1.*"):
        path.unlink()
    assert command(["--out", str(done), "--report-only"]) == 0
    assert {row["draw"] for row in results(done)["cells"]} == {0}
    assert "One draw of labelled images" in (done / "results.md").read_text()


def test_validation_never_looks_at_test(home: Path, tmp_path: Path) -> None:
    grid = ["--methods", "majority", "--shots", "1", "--draws", "1", "--split", "val"]
    assert command([*inputs(home), *SMALL, *grid, "--out", str(tmp_path)]) == 0
    cell = Cell.read(tmp_path / "cells" / "majority-1-shot-draw-0.json")
    assert cell.facts["images"] == PartFolder.open(home / "faces").splits.val
    assert "not a result" in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "magic"], '"magic" is none of majority, unet'),
        (["--shots", "0"], "--shots: give one or more"),
        (["--draws", "0"], "--draws 0: give 1 or more"),
        (["--rival-steps", "0"], "--rival-steps 0: give 1 or more"),
        (["--classes", "nowhere.json"], "nowhere.json"),
        (["--draws", "9"], "draw 5 does not exist"),
        (["--shots", "30"], "has only"),
        (["--report-only"], "no comparison there"),
    ],
)
def test_bad_input_is_said_before_anything_is_written(
    arguments: list[str],
    message: str,
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert command([*inputs(home), *arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_of_something_else_is_left_alone(home: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", np.zeros(1))
    assert command([*inputs(home), "--out", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine.npy"]
