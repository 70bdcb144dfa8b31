"""Polygons that parts are made of."""

from __future__ import annotations

import math

import numpy as np

Points = np.ndarray  # [n, 2], x to the right and y down


def ellipse(
    x: float, y: float, radius_x: float, radius_y: float, count: int = 28, power: float = 1.0
) -> Points:
    """A closed (super)ellipse; powers below 1 square it."""
    angle = np.linspace(0, 2 * math.pi, count, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    if power != 1.0:
        cos, sin = np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power
    return np.stack([x + radius_x * cos, y + radius_y * sin], axis=1)


def rotated(points: Points, angle: float) -> Points:
    """Turned about the origin, by radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def smooth(points: Points, closed: bool = True, steps: int = 5) -> Points:
    """A Catmull-Rom spline through points."""
    if closed:
        before, start, end, after = (np.roll(points, shift, axis=0) for shift in (1, 0, -1, -2))
    else:
        padded = np.concatenate([points[:1], points, points[-1:]])
        before, start, end, after = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    before, start, end, after = (p[:, None] for p in (before, start, end, after))
    curve = start + 0.5 * t * (
        end
        - before
        + t * (2 * before - 5 * start + 4 * end - after + t * (3 * (start - end) + after - before))
    )
    flat: Points = curve.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, points[-1:]])
