"""Hair, and what is behind the head."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpseg.data.drawn.canvas import BACKGROUND, HAIR, SKIN, Canvas
from gpseg.data.drawn.colors import any_color
from gpseg.data.drawn.head import outline_of
from gpseg.data.drawn.shapes import Points, ellipse, smooth


@dataclass(frozen=True)
class HairStyle:
    """How the hair lies; lengths in units of half the head's height."""

    bald: bool
    volume: float  # how far it stands off the skull
    curl: float  # amplitude of the waves of its outline
    curls: int
    length: float  # how far down it hangs behind the head; below -0.2 it doesn't
    curtain: float  # how far it covers the cheeks from either side
    hairline: float  # y at the middle of the forehead
    peak: float
    part: float  # where the fringe divides, -1..1
    fringe: float  # how far it falls over the forehead
    sideburn: float
    bun: bool

    @classmethod
    def sample(cls, rng: np.random.Generator) -> HairStyle:
        kind = rng.choice(
            ["bald", "cropped", "short", "curly", "bob", "long"],
            p=[0.08, 0.12, 0.3, 0.14, 0.12, 0.24],
        )
        hangs = kind in ("bob", "long")
        volume = {"cropped": (0.01, 0.04), "short": (0.06, 0.18), "curly": (0.15, 0.45)}
        low, high = volume.get(kind, (0.06, 0.2))
        lengths = {"bob": (0.4, 0.9), "long": (0.9, 1.8), "curly": (-0.4, 0.9)}
        shortest, longest = lengths.get(kind, (-0.6, 0.0))
        return cls(
            bald=kind == "bald",
            volume=rng.uniform(low, high),
            curl=rng.uniform(0.03, 0.09) if kind == "curly" else rng.uniform(0, 0.025),
            curls=int(rng.integers(7, 16)),
            length=rng.uniform(shortest, longest),
            curtain=rng.uniform(0, 0.3) if hangs else 0.0,
            hairline=rng.uniform(-0.78, -0.48),
            peak=rng.uniform(-0.12, 0.12),
            part=rng.uniform(-0.9, 0.9),
            fringe=rng.uniform(0.1, 0.5) if kind != "cropped" and rng.random() < 0.45 else 0.0,
            sideburn=rng.uniform(-0.3, 0.15),
            bun=bool(hangs and rng.random() < 0.15),
        )


def draw_behind(canvas: Canvas, style: HairStyle, rng: np.random.Generator) -> None:
    """Hair behind the head, neck, shoulders."""
    person = canvas.person
    back = -0.25 * math.sin(canvas.pose.yaw)  # the back of the head goes against the face's turn
    width = person.half_width + style.volume
    hair = person.hair * 0.82
    if not style.bald:
        if style.bun:
            size = rng.uniform(0.2, 0.32)
            canvas.fill(ellipse(back, -1 - style.volume, size, size), hair, HAIR)
        crown = _wavy(ellipse(back, -0.1, width, 0.9 + style.volume, 48), style)
        canvas.fill(crown, hair, HAIR)
        if style.length > -0.2:
            flare = width * rng.uniform(0.85, 1.2)
            left, right = rng.uniform(-0.12, 0.12, 2)
            hanging = np.array(
                [
                    (back - width, -0.2),
                    (back, -0.4),
                    (back + width, -0.2),
                    (back + flare, style.length * 0.6),
                    (back + flare * 0.9, style.length + right),
                    (back, style.length),
                    (back - flare * 0.9, style.length + left),
                    (back - flare, style.length * 0.6),
                ]
            )
            canvas.fill(_wavy(smooth(hanging), style), hair, HAIR)
    neck = person.half_width * rng.uniform(0.5, 0.72)
    shoulder_y, shoulder = rng.uniform(1.25, 1.45), rng.uniform(1.2, 1.9)
    shade = person.skin * rng.uniform(0.7, 0.9)
    canvas.fill(
        np.array([(-neck, 0.4), (neck, 0.4), (neck * 1.1, 2), (-neck * 1.1, 2)]), shade, SKIN
    )
    collar = rng.uniform(0.05, 0.45)
    clothes = np.array(
        [
            (-shoulder, 4.0),
            (-shoulder, shoulder_y + 0.35),
            (-neck * 1.5, shoulder_y),
            (-neck, shoulder_y - 0.05),
            (0, shoulder_y + collar),
            (neck, shoulder_y - 0.05),
            (neck * 1.5, shoulder_y),
            (shoulder, shoulder_y + 0.35),
            (shoulder, 4.0),
        ]
    )
    canvas.fill(clothes, person.clothes, BACKGROUND)
    if rng.random() < 0.4:
        canvas.stroke(clothes[2:7], 0.08, any_color(rng), BACKGROUND)


def draw_hair(canvas: Canvas, style: HairStyle, rng: np.random.Generator) -> None:
    """Hair on the skull down to the hairline, the fringe, and what hangs over the cheeks."""
    if style.bald:
        return
    person = canvas.person
    temple = person.half_width * 0.97
    skull = _wavy(outline_of(canvas, style.volume), style)
    skull = skull[(skull[:, 1] <= style.sideburn)]
    skull = skull[np.argsort(np.arctan2(skull[:, 1] - 0.4, skull[:, 0]))]
    line_x = np.linspace(temple, -temple, 9)
    along = line_x / temple
    line_y = style.hairline + style.peak * np.cos(2 * math.pi * along) * (1 - along**2)
    line_y = line_y + (style.sideburn - style.hairline) * np.abs(along) ** 3.5
    hairline = smooth(canvas.on_face(np.stack([line_x, line_y], axis=1)), closed=False)
    canvas.fill(np.concatenate([skull, hairline]), person.hair, HAIR)
    if style.fringe:
        _draw_fringe(canvas, style, rng)
    if style.curtain:
        for side in (-1, 1):
            edge = person.half_width + style.volume
            reach = person.half_width - style.curtain * rng.uniform(0.5, 1.3)
            drop = min(style.length, 1.3) * rng.uniform(0.85, 1.0)
            back = 0.1 * math.sin(canvas.pose.yaw)
            lock = np.array(
                [
                    (edge * 0.7, -0.65),
                    (edge, -0.2),
                    (edge * 1.02, drop),
                    (reach * 1.08, drop * rng.uniform(0.9, 1.1)),
                    (reach, 0.2),
                    (reach * 0.9, -0.45),
                ]
            ) * (side, 1) + (back, 0)
            canvas.fill(_wavy(smooth(lock), style), person.hair * 1.05, HAIR)


def _draw_fringe(canvas: Canvas, style: HairStyle, rng: np.random.Generator) -> None:
    person = canvas.person
    reach = person.half_width * 0.93
    locks = int(rng.integers(4, 9))
    x = np.linspace(-reach, reach, 2 * locks + 1)
    bottom = style.hairline + style.fringe * (1 - 0.35 * (x / reach) ** 2)
    bottom = bottom - np.abs(x / reach - style.part).clip(max=0.6) * 0.1
    bottom[1::2] -= rng.uniform(0.02, 0.22, locks) * (0.4 + style.fringe)
    low = canvas.on_face(np.stack([x, bottom], axis=1), 0.04)
    high = canvas.on_face(np.stack([x[::-1], np.full_like(x, style.hairline - 0.12)], axis=1))
    canvas.fill(np.concatenate([low, high]), person.hair * 1.08, HAIR)


def _wavy(points: Points, style: HairStyle) -> Points:
    """Push an outline out and in by the curls of the hair."""
    if not style.curl:
        return points
    centre = points.mean(axis=0)
    phase = np.linspace(0, 2 * math.pi, len(points), endpoint=False)
    wave = np.abs(np.sin(phase * style.curls / 2)) * 2 - 1
    away = points - centre
    unit = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-6)
    waved: Points = points + unit * (style.curl * wave)[:, None]
    return waved
