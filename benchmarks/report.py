"""What a run leaves behind: results.json, report.md and report.html, which needs no other file and no network."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from benchmarks import goals, growth, plots, revision, rows, tables
from benchmarks.environment import described
from benchmarks.rows import Row
from gpseg.atomic import replacing

HOW = (
    "Median time and its 20th and 80th percentile; median of the rounds' ratios to the textbook, which takes turns with"
    " the others; rise of memory at its peak, of a backward together with the forward, in MiB and as a share of the"
    " textbook's; bytes that have to be moved a second, as a share of y.copy_(x) larger than the last cache and of one of"
    " as many bytes; operations of convolutions and matrix products a second, as a share of a matrix product in the same"
    " type. All of one run; what was wrong was not timed."
)


@dataclass
class Report:
    """All that is known so far.

    Args:
        environment: see `benchmarks.environment`.
        rows: what was measured.
        laws: exponents of what grows.
        outcomes: of the goals.
        changes: against another revision.
        compared: against an earlier file: problem and contestant, seconds then and now, times as fast.
        base, earlier: names of those two.
    """

    environment: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    laws: list[growth.Growth] = field(default_factory=list)
    outcomes: list[goals.Outcome] = field(default_factory=list)
    changes: list[revision.Change] = field(default_factory=list)
    compared: list[list[str]] = field(default_factory=list)
    base: str = ""
    earlier: str = ""

    @property
    def failed(self) -> list[Row]:
        """Rows of contestants whose results are wrong."""
        return [r for r in self.rows if r.outcome == "failed"]

    def write(self, folder: Path) -> None:
        """Write or replace the three files."""
        rows.write(
            folder / rows.NAME,
            self.environment,
            self.rows,
            growth=[dataclasses.asdict(law) for law in self.laws],
            goals=[_flat(o) for o in self.outcomes],
            changes=[dataclasses.asdict(c) for c in self.changes],
        )
        for name, text in (("report.md", self.markdown()), ("report.html", self.page())):
            with replacing(folder / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def sections(self) -> list["Section"]:
        """The tables of all but the rows, those that have lines."""
        every = [
            Section(
                "Goals",
                "Of this run: what is wanted, what was measured, and whether that is enough.",
                goals.HEADS,
                [goals.cells(o) for o in self.outcomes],
            ),
            Section(
                f"Against {self.base}",
                "Both revisions in turn, each in a process of its own.",
                revision.HEADS,
                [revision.cells(c) for c in self.changes],
            ),
            Section(
                f"Against {self.earlier}",
                "Measured at another time, perhaps under other load: an indication.",
                COMPARED,
                self.compared,
            ),
            Section(
                "Growth",
                "Exponents by least squares in the logarithms, in brackets over the sizes that do not fit the last cache;"
                f" worse than linear is above {growth.WORSE_THAN_LINEAR} there.",
                growth.HEADS,
                growth.lines(self.laws),
            ),
        ]
        return [section for section in every if section.lines]

    def markdown(self) -> str:
        """The tables, to be pasted."""
        facts = "\n".join(f"* {line}" for line in described(self.environment))
        parts = [f"{facts}\n* {self.environment['date']}, `{self.environment['command']}`"]
        for s in self.sections():
            parts.append(f"## {s.title}\n\n{s.text}\n\n{tables.markdown(s.heads, s.lines)}")
        if self.rows:
            parts.append(f"## Everything\n\n{HOW}\n\n{tables.markdown_rows(self.rows)}")
        return "\n\n".join(parts) + "\n"

    def page(self) -> str:
        """The same as HTML, with pictures."""
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        source = Path(__file__).with_name("page.html").read_text("utf-8")
        notes = [f"{len(self.failed)} contestants gave wrong results and were not timed."]
        return environment.from_string(source).render(
            machine=self.environment["gpu"] or self.environment["processor"],
            about=described(self.environment),
            environment=self.environment,
            notes=notes if self.failed else [],
            tables=self.sections(),
            pictures=[
                *plots.ratios(self.rows),
                *plots.rooflines(self.rows),
                *plots.growth(self.rows),
            ],
            heads=tables.HEADS,
            how=HOW,
            races=[
                (title, [(r.outcome == "failed", tables.cells(r)) for r in members])
                for title, members in tables.races(self.rows)
            ],
        )


@dataclass(frozen=True)
class Section:
    """A table with what it says."""

    title: str
    text: str
    heads: Sequence[str]
    lines: Sequence[Sequence[str]]


COMPARED = ("problem", "contestant", "then, ms", "now, ms", "times as fast")


def _flat(outcome: goals.Outcome) -> dict[str, Any]:
    flat = dataclasses.asdict(outcome)
    return {**flat.pop("goal"), **flat}


def compare(now: Sequence[Row], then: Sequence[Row]) -> list[list[str]]:
    """What became of the rows that are in both, as `COMPARED` heads them."""
    before = {r.identity: r for r in then if r.seconds}
    lines = []
    for row in now:
        old = before.get(row.identity)
        if old is None or not old.seconds or not row.seconds:
            continue
        lines.append(
            [
                row.race,
                row.contestant,
                f"{old.seconds * 1e3:.3g}",
                f"{row.seconds * 1e3:.3g}",
                f"{old.seconds / row.seconds:.2f}",
            ]
        )
    return lines
