"""Claims are judged by the intervals of what was measured, and say what wasn't."""

import torch
from torch import Tensor

from gpseg.evaluation.claims import judge, paired

FROZEN, PROGRESSIVE, STREAMS, RANDOM, FIVE = range(5)


def counts(large: int, small: int) -> Tensor:
    """Confusions [6, 2, 2] of images with 100 pixels of each class, of which so many are right."""
    one = torch.tensor([[large, 100 - large], [100 - small, small]])
    return one.expand(6, 2, 2)


def measured(table: dict[tuple[str, int], tuple[int, int]], draws: int = 3):
    def by_draw(name: str, shots: int) -> dict[int, Tensor]:
        found = table.get((name, shots))
        return {} if found is None else {draw: counts(*found) for draw in range(draws)}

    return by_draw


def verdicts(table: dict[tuple[str, int], tuple[int, int]], draws: int = 3) -> list[str]:
    return [claim.verdict for claim in judge(measured(table, draws), [1, 5], [1], [0])]


def test_what_is_better_everywhere_holds() -> None:
    both = {("gpseg", 1): (80, 80), ("gpseg", 5): (90, 90)}
    worse = {("pixel-classifier", 1): (70, 70), ("pixel-classifier", 5): (80, 80)}
    assert verdicts(both | worse)[FROZEN] == "holds"
    assert verdicts(both | worse, draws=1)[FROZEN] == "holds, on one draw"
    assert verdicts(both | worse | {("pixel-classifier", 5): (91, 91)})[FROZEN] == "does not hold"
    assert verdicts(both | worse)[RANDOM] == "not measured"
    del worse["pixel-classifier", 5]
    assert verdicts(both | worse)[FROZEN] == "holds, as far as measured"


def test_most_at_the_fewest_labels_is_part_of_the_claim() -> None:
    table = {("gpseg", 1): (80, 80), ("gpseg", 5): (90, 90), ("direct", 5): (88, 88)}
    assert verdicts(table | {("direct", 1): (60, 60)})[PROGRESSIVE] == "holds"
    assert verdicts(table | {("direct", 1): (79, 79)})[PROGRESSIVE] == "does not hold"


def test_most_on_small_parts_is_part_of_the_claim() -> None:
    table = {("gpseg", 1): (90, 80), ("gpseg", 5): (90, 80)}
    on_small = {("one-stream", 1): (89, 60), ("one-stream", 5): (89, 60)}
    on_large = {("one-stream", 1): (60, 79), ("one-stream", 5): (60, 79)}
    apart = {("no-crossing", 1): (85, 75), ("no-crossing", 5): (85, 75)}
    assert verdicts(table | on_small | apart)[STREAMS] == "holds"
    assert verdicts(table | on_large | apart)[STREAMS] == "does not hold"
    assert verdicts(table | on_small)[STREAMS] == "holds, as far as measured"
    apart["no-crossing", 5] = (91, 81)
    assert verdicts(table | on_small | apart)[STREAMS] == "does not hold"


def test_one_label_is_held_against_five() -> None:
    assert verdicts({("gpseg", 1): (80, 80), ("unet", 5): (79, 79)})[FIVE] == "holds"
    assert verdicts({("gpseg", 1): (80, 80), ("unet", 5): (81, 81)})[FIVE] == "does not hold"


def test_only_draws_of_both_are_paired() -> None:
    def by_draw(name: str, shots: int) -> dict[int, Tensor]:
        return {"a": {0: counts(80, 80), 2: counts(90, 90)}, "b": {2: counts(90, 90)}}[name]

    interval = paired(by_draw, "a", "b", 1)
    assert interval is not None and interval.draws == 1 and interval.value == 0
