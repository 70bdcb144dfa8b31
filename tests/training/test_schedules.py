"""Ramps, interpolated targets and the learning rate."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpseg.training.schedules import interpolated_target, learning_rate, ramp

RISING = ("linear", "cosine", "staircase")


@pytest.mark.parametrize("shape", RISING)
@given(
    progress=st.lists(st.floats(0, 1), min_size=2, max_size=6),
    start=st.floats(0, 0.9),
    end=st.floats(0, 1),
)
def test_rising_ramps_rise_from_0_to_1(
    shape: str, progress: list[float], start: float, end: float
) -> None:
    end = max(start, end)
    values = [ramp(shape, p, start=start, end=end) for p in sorted(progress)]  # type: ignore[arg-type]
    assert values == sorted(values)
    assert all(0 <= v <= 1 for v in values)
    assert ramp(shape, start / 2, start=start, end=end) == float(end == 0)  # type: ignore[arg-type]
    assert ramp(shape, end, start=start, end=end) == 1  # type: ignore[arg-type]


def test_shapes_differ_and_controls_are_constant() -> None:
    assert len({ramp(shape, 0.2) for shape in RISING}) == 3  # type: ignore[arg-type]
    assert [ramp("direct", p) for p in (0, 0.5, 1)] == [1, 1, 1]
    assert [ramp("fixed", p, fixed=0.3) for p in (0, 0.5, 1)] == [0.3] * 3


def test_interpolated_target_goes_from_image_to_palette() -> None:
    images = torch.rand(1, 3, 2, 2)
    palette = torch.tensor([[-1.0, -1, -1], [1, 0, -1]])
    masks = torch.tensor([[[0, 1], [1, 255]]], dtype=torch.uint8)
    assert torch.equal(interpolated_target(images, masks, palette, 0.0), images)
    painted = interpolated_target(images, masks, palette, 1.0)
    assert torch.equal(painted[0, :, 0, 1], palette[1])
    half = interpolated_target(images, masks, palette, 0.5)
    torch.testing.assert_close(half, (images + painted) / 2)


def test_learning_rate_rises_holds_and_falls_to_0() -> None:
    assert learning_rate(0.0) == 0
    assert learning_rate(0.3) == 1
    assert learning_rate(1.0) == pytest.approx(0)
    assert learning_rate(0.7) > learning_rate(0.9)
