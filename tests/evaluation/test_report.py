import base64
import dataclasses
import errno
import io
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from gpseg.data import Classes, PartClass
from gpseg.errors import RunError
from gpseg.evaluation.metrics import Score
from gpseg.evaluation.report import Example, Report, Table, write_report

CLASSES = Classes((PartClass(0, "background", (0, 0, 0)), PartClass(1, "<part>", (250, 0, 0))))
BLUE = torch.tensor([0, 0, 200], dtype=torch.uint8)[:, None, None].expand(3, 64, 64)
FULL = Report(
    title="Parts",
    lead="of faces & more",
    classes=CLASSES,
    scores={
        "read-out": Score(0.75, {"background": 0.9, "<part>": 0.6}),
        "floor": Score(0.5, {"background": 0.8, "<part>": float("nan")}),
        "U-Net": Score(0.7, {"background": 0.9, "<part>": 0.5}),
    },
    chosen="read-out",
    floor="floor",
    examples=[Example("worst", "007", {"input": BLUE, "target": BLUE}, miou=0.25)],
    legend={"background": (0, 0, 0)},
    ramp=[(0.0, BLUE), (0.25, BLUE)],
    curves=[{"step": 1, "loss": 2.0, "a": 0.0}, {"step": 2, "loss": 1.0, "a": 1.0, "val_x": 0.5}],
    config={"shots": 5, "tuning": {"steps": 100}, "out": None},
    notes=["Mind this."],
)


class Page(HTMLParser):
    """Pictures and visible words of a page; fails on tags that don't close."""

    VOID = ("meta", "img", "link", "br", "!doctype")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def write(tmp_path: Path, report: Report) -> Page:
    write_report(tmp_path / "report.html", report)
    return Page((tmp_path / "report.html").read_text("utf-8"))


def pixels(source: str | None) -> np.ndarray:
    assert source is not None
    head, data = source.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_shows_scores_beside_the_floor_by_class(tmp_path: Path) -> None:
    text = write(tmp_path, FULL).text
    assert "75.0 %" in text
    assert "read-out; +25.0 on the floor of 50.0" in text
    assert "background 90.0 80.0 +10.0 90.0" in text
    assert "<part> 60.0 - - 50.0" in text
    assert "mean 75.0 50.0 +25.0 70.0" in text


def test_a_score_below_the_floor_shows_as_such(tmp_path: Path) -> None:
    report = dataclasses.replace(FULL, chosen="floor", floor="read-out")
    text = write(tmp_path, report).text
    assert "\N{MINUS SIGN}25.0 on the floor of 75.0" in text


def test_shows_options_notes_examples_and_ramp(tmp_path: Path) -> None:
    text = write(tmp_path, FULL).text
    for words in ("Mind this.", "tuning.steps 100", "out -", "worst 007 mIoU 25.0", "a = 0.25"):
        assert words in text


def test_stands_alone_with_every_picture_inside(tmp_path: Path) -> None:
    page = write(tmp_path, FULL)
    alts = [image["alt"] for image in page.images]
    assert alts[:2] == ["input of 007", "target of 007"]
    assert [alt for alt in alts if alt and "by training step" in alt] == [
        "Losses by training step",
        "Ramp a, share of the part map by training step",
        "Validation mIoU by training step",
    ]
    assert (pixels(page.images[0]["src"]) == [0, 0, 200]).all()
    assert all(pixels(image["src"]).size for image in page.images)
    html = (tmp_path / "report.html").read_text("utf-8")
    assert not re.search(r"https?://|<script|<link|@import|url\(", html)


def test_small_pictures_keep_their_pixels_and_large_ones_are_shrunk(tmp_path: Path) -> None:
    large = torch.zeros(3, 1024, 1024, dtype=torch.uint8)
    rows = [Example("", "x", {"small": BLUE, "large": large})]
    page = write(tmp_path, dataclasses.replace(FULL, examples=rows))
    small, big = page.images[:2]
    assert small["class"] == "pixelated"
    assert pixels(small["src"]).shape == (64, 64, 3)
    assert "class" not in big
    assert pixels(big["src"]).shape == (256, 256, 3)


def test_escapes_what_comes_from_outside(tmp_path: Path) -> None:
    report = dataclasses.replace(FULL, title="<script>alert(1)</script>", notes=["a < b"])
    page = write(tmp_path, report)
    assert "<script>" not in (tmp_path / "report.html").read_text("utf-8")
    assert "a < b" in page.text


def test_leaves_out_what_is_empty(tmp_path: Path) -> None:
    page = write(tmp_path, Report("Parts", "nothing yet", CLASSES))
    assert page.images == []
    assert page.text == "Parts Parts nothing yet"


def test_curves_with_gaps_and_with_values_no_logarithm_takes(tmp_path: Path) -> None:
    curves = [{"step": 1, "loss": 0.0}, {"step": 2, "other": -1.0}, {"step": 3, "loss": 1.0}]
    page = write(tmp_path, Report("Parts", "", CLASSES, curves=curves))
    assert len(page.images) == 1


def test_a_full_disk_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.html").write_text("old")

    def full(self: Path, *args: object, **kwargs: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(RunError, match="the disk is full"):
        write_report(tmp_path / "report.html", FULL)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_tables_and_plots_are_shown(tmp_path: Path) -> None:
    figure = Figure()
    figure.subplots().plot([1, 2])
    table = Table(
        "By <class>", ["IoU", "a|b"], [["ours", "1.0"], ["theirs", "−"]], ["ours"], "In %."
    )
    write_report(tmp_path / "r.html", Report("T", "lead", tables=[table], plots=[("Plot", figure)]))
    html = (tmp_path / "r.html").read_text()
    page = Page(html)
    assert "Plot By <class> In %. IoU a|b ours 1.0 theirs −" in page.text
    assert html.count('<tr class="main">') == 1 and len(page.images) == 1
    assert table.markdown().splitlines() == [
        "## By <class>",
        "",
        "In %.",
        "",
        "| IoU | a\\|b |",
        "| --- | ---: |",
        "| ours | 1.0 |",
        "| theirs | − |",
    ]


def test_names_that_are_no_utf_8_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"fl\xe4che")
    examples = [dataclasses.replace(FULL.examples[0], name=name)]
    write_report(tmp_path / "report.html", dataclasses.replace(FULL, examples=examples))
    assert "fl\\udce4che" in (tmp_path / "report.html").read_text()
