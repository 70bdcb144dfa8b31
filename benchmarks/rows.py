"""What is measured: one row of a table for each contestant in a problem, and how rows are written and read."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gpseg.atomic import replacing
from gpseg.errors import InputError
from gpseg.selftest.report import dump

FORMAT = 1
"""Version of the file's layout."""

NAME = "results.json"


@dataclass(frozen=True)
class Row:
    """One contestant in one problem; None where there is no such figure.

    Args:
        kind: what is measured: an operator, a part of one, a whole model, or growth with size or threads.
        race: what all that are compared have in common, in words.
        problem, contestant: their names.
        direction: forward, backward, forward+backward, double_backward, or step.
        dtype: of images, or of a model's features.
        layout: of images: nchw or channels_last.
        threads: of the CPU.
        outcome: timed; failed, its results being wrong or not to be had, and then not timed.
        error: why it failed.
        deviation, tolerance: worst relative root-mean-square error of its results, and what it may be.
        times: seconds by round.
        seconds, seconds_low, seconds_high: their median, 20th and 80th percentile.
        ratio, ratio_low, ratio_high: the same of the rounds' ratios, how many times as fast as the textbook.
        memory: bytes by which memory rises at its peak; for a backward that of forward and backward together.
        memory_ratio: as a share of the textbook's.
        moved: bytes that have to be read and written.
        bandwidth: `moved` a second.
        copy, equal_copy: bytes a second of a copy larger than the last cache, and of one of `moved` bytes.
        of_copy, of_equal_copy: `bandwidth` as a share of these.
        operations: of convolutions and matrix products, a multiply-add being two.
        rate: `operations` a second.
        matmul: operations a second of a matrix product in this type.
        of_matmul: `rate` as a share of it.
        arithmetic: operations of any kind, for the roofline.
        size, batch: of the images, where growth is measured.
    """

    kind: Literal["operator", "part", "model", "growth"]
    race: str
    problem: str
    contestant: str
    direction: str
    dtype: str
    layout: str
    threads: int
    outcome: Literal["timed", "failed"] = "timed"
    error: str = ""
    deviation: float | None = None
    tolerance: float | None = None
    times: list[float] = field(default_factory=list)
    seconds: float | None = None
    seconds_low: float | None = None
    seconds_high: float | None = None
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    memory: int | None = None
    memory_ratio: float | None = None
    moved: int | None = None
    bandwidth: float | None = None
    copy: float | None = None
    equal_copy: float | None = None
    of_copy: float | None = None
    of_equal_copy: float | None = None
    operations: float | None = None
    rate: float | None = None
    matmul: float | None = None
    of_matmul: float | None = None
    arithmetic: float | None = None
    size: int | None = None
    batch: int | None = None

    @property
    def identity(self) -> tuple[str, str, str, int]:
        """What tells it from every other row of a file."""
        return self.race, self.contestant, self.dtype, self.threads


def write(path: Path, environment: dict[str, Any], rows: Sequence[Row], **more: Any) -> None:
    """Write or replace a file of results.

    Args:
        path: where, in a folder that exists.
        environment: what results depend on.
        rows: the results.
        more: further members, lists of dicts.
    """
    flat = [{**dataclasses.asdict(r), "times": [float(f"{t:.4g}") for t in r.times]} for r in rows]
    content = {"format": FORMAT, "environment": environment, "rows": flat, **more}
    with replacing(path) as temporary:
        temporary.write_text(dump(content))


def read(path: Path) -> list[Row]:
    """The rows of a file that `write` wrote; of a folder, of its `results.json`.

    Raises:
        InputError: there is none, or it is something else.
    """
    file = path / NAME if path.is_dir() else path
    try:
        content = json.loads(file.read_text())
        if content["format"] != FORMAT:
            raise InputError(f"{file}: layout {content['format']}, not {FORMAT}; measure again")
        return [Row(**row) for row in content["rows"]]
    except OSError as error:
        raise InputError(
            f"{file}: can't be read ({error.strerror}); give a {NAME} of an earlier run"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{file}: not a file of results of python -m benchmarks; give a {NAME}"
        ) from error
