"""The classes, a head and how it is turned, and what is painted on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from gpseg.data.classes import Classes, PartClass
from gpseg.data.drawn.colors import HAIR_COLORS, IRIS_COLORS, SKIN_TONES, Rgb, any_color, mixed
from gpseg.data.drawn.shapes import Points

DRAWN_CLASSES = Classes(
    (
        PartClass(0, "background", (40, 40, 48)),
        PartClass(1, "skin", (244, 196, 140)),
        PartClass(2, "hair", (150, 60, 30)),
        PartClass(3, "eyes", (40, 90, 240)),
        PartClass(4, "nose", (60, 200, 190)),
        PartClass(5, "mouth", (60, 190, 60)),
    )
)

BACKGROUND, SKIN, HAIR, EYES, NOSE, MOUTH = range(6)

# Look-up tables that turn an id into 255 and every other into 0.
_ONLY = [[255 if value == part else 0 for value in range(256)] for part in range(6)]


@dataclass(frozen=True)
class Pose:
    """Where the face is and how it is turned; lengths in units of the picture's side."""

    x: float
    y: float
    size: float  # half the height of the head
    roll: float  # radians
    yaw: float
    pitch: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Pose:
        size = rng.uniform(0.29, 0.43)
        slack = 0.5 - 0.75 * size
        return cls(
            x=0.5 + rng.uniform(-1, 1) * slack * 0.6,
            y=0.5 + rng.uniform(-1, 1) * slack * 0.5,
            size=size,
            roll=float(np.clip(rng.normal(0, 0.18), -0.5, 0.5)),
            yaw=rng.uniform(-0.65, 0.65),
            pitch=rng.uniform(-0.3, 0.3),
        )


@dataclass(frozen=True)
class Person:
    """Shape and colours of a head; lengths in units of half its height, origin at its centre."""

    half_width: float
    jaw: float  # exponent of the lower outline: square below 1, pointed above
    eye_y: float
    eye_x: float
    eye_width: float
    eye_open: float
    brow_gap: float
    brow_width: float
    nose_y: float
    nose_width: float
    mouth_y: float
    mouth_width: float
    smile: float
    mouth_open: float
    lip: float
    skin: Rgb
    hair: Rgb
    iris: Rgb
    lips: Rgb
    clothes: Rgb

    @classmethod
    def sample(cls, rng: np.random.Generator) -> Person:
        skin = mixed(SKIN_TONES, rng)
        hair = mixed(HAIR_COLORS, rng)
        if rng.random() < 0.08:
            hair = rng.uniform(40, 220, 3)
        if np.abs(hair - skin).mean() < 35:
            hair = hair * 0.55  # else nothing but the mask would tell a beard from a chin
        nose_y = rng.uniform(0.26, 0.42)
        red = np.array([190, 50, 60])
        return cls(
            half_width=rng.uniform(0.62, 0.86),
            jaw=rng.uniform(0.55, 1.15),
            eye_y=rng.uniform(-0.12, 0.06),
            eye_x=rng.uniform(0.26, 0.36),
            eye_width=rng.uniform(0.13, 0.19),
            eye_open=rng.uniform(0.25, 0.75) if rng.random() < 0.9 else 0.12,
            brow_gap=rng.uniform(0.14, 0.24),
            brow_width=rng.uniform(0.03, 0.075),
            nose_y=nose_y,
            nose_width=rng.uniform(0.13, 0.22),
            mouth_y=nose_y + rng.uniform(0.2, 0.3),
            mouth_width=rng.uniform(0.18, 0.34),
            smile=rng.uniform(-0.06, 0.12),
            mouth_open=rng.uniform(0.05, 0.22) if rng.random() < 0.35 else 0.0,
            lip=rng.uniform(0.035, 0.075),
            skin=skin,
            hair=hair,
            iris=mixed(IRIS_COLORS, rng),
            lips=skin * 0.85 + (red - skin * 0.85) * rng.uniform(0.2, 0.75),
            clothes=any_color(rng),
        )


class Canvas:
    """Paints colour and class of one polygon after another, supersampled."""

    def __init__(self, resolution: int, pose: Pose, person: Person) -> None:
        # Ids need no more than a majority, so large pictures can do with fewer samples a pixel.
        self.samples = 4 if resolution <= 128 else 2
        self.resolution = resolution
        self.side = resolution * self.samples
        self.pose = pose
        self.person = person
        self.ids = Image.new("L", (self.side, self.side), BACKGROUND)
        self.colors = Image.new("RGB", (self.side, self.side))
        self._draw_ids = ImageDraw.Draw(self.ids)
        self._draw_colors = ImageDraw.Draw(self.colors)

    def on_face(self, points: Points, lift: float = 0.0) -> Points:
        """Turn points of a face seen from the front with the head; `lift` raises them off it."""
        pose = self.pose
        x, y = points[:, 0], points[:, 1]
        depth = np.sqrt(np.clip(1 - (x / self.person.half_width) ** 2 - (0.85 * y) ** 2, 0.04, 1))
        depth = 0.55 * depth + lift
        turned = np.stack(
            [
                x * math.cos(pose.yaw) + depth * math.sin(pose.yaw),
                y * math.cos(pose.pitch) + depth * math.sin(pose.pitch),
            ],
            axis=1,
        )
        return turned

    def fill(self, points: Points, color: Rgb, part: int | None) -> None:
        """Paint a polygon given in the frame of the head; part None keeps the ids below."""
        corners = self._to_pixels(points)
        self._draw_colors.polygon(corners, fill=_rgb(color))
        if part is not None:
            self._draw_ids.polygon(corners, fill=part)

    def stroke(self, points: Points, width: float, color: Rgb, part: int | None) -> None:
        """Paint a line of the given width through points in the frame of the head."""
        corners = self._to_pixels(points)
        pixels = max(1, round(width * self.pose.size * self.side))
        self._draw_colors.line(corners, fill=_rgb(color), width=pixels, joint="curve")
        if part is not None:
            self._draw_ids.line(corners, fill=part, width=pixels, joint="curve")

    def fill_picture(self, points: Points, color: Rgb) -> None:
        """Paint a background polygon given in units of the picture's side."""
        corners = (points * self.side).ravel().tolist()
        self._draw_colors.polygon(corners, fill=_rgb(color))
        self._draw_ids.polygon(corners, fill=BACKGROUND)

    def _to_pixels(self, points: Points) -> list[float]:
        pose = self.pose
        cos, sin = math.cos(pose.roll), math.sin(pose.roll)
        turned = points @ np.array([[cos, sin], [-sin, cos]])
        placed = turned * pose.size + (pose.x, pose.y)
        corners: list[float] = (placed * self.side).ravel().tolist()
        return corners

    def head_frame(self) -> tuple[np.ndarray, np.ndarray]:
        """Coordinates of the pixels' centres in the frame of the head, each [r, r]."""
        pose = self.pose
        line = (np.arange(self.resolution, dtype=np.float32) + 0.5) / self.resolution
        x, y = (line[None, :] - pose.x) / pose.size, (line[:, None] - pose.y) / pose.size
        cos, sin = math.cos(pose.roll), math.sin(pose.roll)
        return x * cos + y * sin, y * cos - x * sin

    def developed(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the colours, float32 [r, r, 3], and how much each class covers, [K, r, r]."""
        cover = [
            np.asarray(self.ids.point(_ONLY[part]).reduce(self.samples), dtype=np.float32)
            for part in range(DRAWN_CLASSES.num_classes)
        ]
        colors = np.asarray(self.colors.reduce(self.samples), dtype=np.float32)
        return colors, np.stack(cover) / 255


def _rgb(color: Rgb) -> tuple[int, int, int]:
    red, green, blue = (int(min(max(channel, 0), 255)) for channel in color)
    return red, green, blue
