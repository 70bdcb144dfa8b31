"""What covers a face without belonging to it."""

from __future__ import annotations

import math

import numpy as np

from gpseg.data.drawn.canvas import BACKGROUND, Canvas
from gpseg.data.drawn.colors import any_color
from gpseg.data.drawn.shapes import Points, ellipse, rotated


def draw_occluders(canvas: Canvas, rng: np.random.Generator) -> None:
    """Glasses, a hat, a hand, a ball: all of class background."""
    if rng.random() < 0.25:
        _draw_glasses(canvas, rng)
    if rng.random() < 0.12:
        _draw_hat(canvas, rng)
    chance = rng.random()
    if chance < 0.08:
        ball = ellipse(*rng.uniform(0.15, 0.85, 2), *(rng.uniform(0.06, 0.16) * np.ones(2)))
        color = any_color(rng)
        canvas.fill_picture(ball, color)
        centre = ball.mean(axis=0)
        canvas.fill_picture(centre + (ball - centre) * 0.5 - 0.03, np.minimum(color * 1.3, 255))
    elif chance < 0.15:
        _draw_hand(canvas, rng)


def _draw_glasses(canvas: Canvas, rng: np.random.Generator) -> None:
    person = canvas.person
    radius_x, radius_y = rng.uniform(0.2, 0.27), rng.uniform(0.14, 0.24)
    width = rng.uniform(0.025, 0.06)
    color = rng.uniform(5, 90, 3) if rng.random() < 0.8 else rng.uniform(120, 230, 3)
    dark = rng.random() < 0.3
    power = rng.uniform(0.4, 1.0)
    for side in (-1, 1):
        lens = ellipse(
            side * (person.eye_x + 0.01), person.eye_y + 0.02, radius_x, radius_y, 24, power
        )
        rim = canvas.on_face(lens, 0.06)
        if dark:
            canvas.fill(rim, color * 0.5, BACKGROUND)
        canvas.stroke(np.concatenate([rim, rim[:2]]), width, color, BACKGROUND)
        arm = np.array(
            [
                (side * (person.eye_x + radius_x), person.eye_y),
                (side * person.half_width, person.eye_y - 0.02),
            ]
        )
        canvas.stroke(canvas.on_face(arm, 0.03), width, color, BACKGROUND)
    inner = person.eye_x - radius_x + 0.02
    bridge = np.array([(-inner, person.eye_y), (0, person.eye_y - 0.03), (inner, person.eye_y)])
    canvas.stroke(canvas.on_face(bridge, 0.1), width, color, BACKGROUND)


def _draw_hat(canvas: Canvas, rng: np.random.Generator) -> None:
    person = canvas.person
    color = any_color(rng)
    width = person.half_width + rng.uniform(0.1, 0.22)
    brow = rng.uniform(-0.6, -0.38)
    height = rng.uniform(0.5, 0.95)
    shift = -0.1 * math.sin(canvas.pose.yaw)
    angle = np.linspace(math.pi, 2 * math.pi, 20)
    dome = np.stack(
        [
            shift + width * np.cos(angle),
            brow + height * np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** 0.7,
        ],
        axis=1,
    )
    canvas.fill(dome, color, BACKGROUND)
    if rng.random() < 0.5:
        brim = width * rng.uniform(1.05, 1.7)
        canvas.fill(ellipse(shift, brow, brim, rng.uniform(0.08, 0.16)), color * 0.75, BACKGROUND)
    else:
        band = np.array([(shift - width, brow - 0.06), (shift + width, brow - 0.06)])
        canvas.stroke(band, 0.16, any_color(rng), BACKGROUND)


def _draw_hand(canvas: Canvas, rng: np.random.Generator) -> None:
    """A hand held before the face from below or from a side."""
    side = rng.choice([-1, 1])
    angle = rng.uniform(-0.5, 0.9) * side
    at = np.array([side * rng.uniform(0.3, 0.8), rng.uniform(0.5, 1.0)])
    color = canvas.person.skin * rng.uniform(0.75, 0.95)
    if rng.random() < 0.4:
        color = any_color(rng)  # a glove

    def placed(points: Points) -> Points:
        return np.add(rotated(points, -angle), at)

    canvas.fill(
        placed(np.array([(-0.2, 0.2), (0.2, 0.2), (0.22, 3), (-0.22, 3)])), color, BACKGROUND
    )
    canvas.fill(placed(ellipse(0, 0.1, 0.3, 0.34)), color, BACKGROUND)
    for finger in range(4):
        x = -0.24 + 0.16 * finger
        tip = -rng.uniform(0.45, 0.65)
        canvas.fill(
            placed(ellipse(x, (tip + 0.1) / 2, 0.075, (0.1 - tip) / 2 + 0.08, 14)),
            color,
            BACKGROUND,
        )
        gap = placed(np.array([(x + 0.08, 0.0), (x + 0.08, tip * 0.6)]))
        canvas.stroke(gap, 0.02, color * 0.6, BACKGROUND)
