"""Procedurally drawn faces with exact part masks: the data set that the package ships.

Every part is a polygon in the frame of the face, brought into the picture by a turn of the head
(yaw and pitch over a rounded face), a roll, a scale and a shift. Colours and class ids are painted
with the same polygons, supersampled, back to front, so the mask is exact, occlusion included: a
pixel takes the class that covers most of it.

Classes: `skin` includes neck and ears, `hair` includes eyebrows and beards, `eyes` are whites and
irises, `mouth` includes teeth and the open mouth. What covers a face without belonging to it
(glasses' frames and dark lenses, hats, hands, balls) is `background`, as clothes are; through clear
lenses the eyes are seen and labelled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor
from tqdm import tqdm

from gpseg.atomic import making
from gpseg.data.classes import Classes, PartClass, read_json, write_json
from gpseg.data.folder import Splits
from gpseg.errors import InputError

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

_SHOTS = 10  # images in each few-shot draw
_DRAWS = 5

_SKIN_TONES = np.array(
    [
        (250, 222, 200),
        (240, 200, 170),
        (226, 178, 140),
        (205, 150, 110),
        (172, 118, 82),
        (136, 88, 58),
        (98, 62, 42),
        (82, 54, 40),
    ],
    dtype=float,
)
_HAIR_COLORS = np.array(
    [
        (22, 18, 18),
        (48, 32, 24),
        (84, 54, 34),
        (124, 84, 48),
        (196, 156, 92),
        (232, 206, 150),
        (160, 66, 30),
        (128, 126, 124),
        (214, 212, 208),
    ],
    dtype=float,
)
_IRIS_COLORS = np.array(
    [(70, 44, 26), (110, 74, 40), (70, 110, 160), (80, 130, 90), (110, 120, 128)], dtype=float
)

Points = np.ndarray  # [n, 2], x to the right and y down
Rgb = np.ndarray  # [3], 0..255


@dataclass(frozen=True)
class _Pose:
    """Where the face is and how it is turned; lengths in units of the picture's side."""

    x: float
    y: float
    size: float  # half the height of the head
    roll: float  # radians
    yaw: float
    pitch: float

    @classmethod
    def sample(cls, rng: np.random.Generator) -> _Pose:
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
class _Person:
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
    def sample(cls, rng: np.random.Generator) -> _Person:
        skin = _mixed(_SKIN_TONES, rng)
        hair = _mixed(_HAIR_COLORS, rng)
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
            iris=_mixed(_IRIS_COLORS, rng),
            lips=skin * 0.85 + (red - skin * 0.85) * rng.uniform(0.2, 0.75),
            clothes=_any_color(rng),
        )


class _Canvas:
    """Paints colour and class of one polygon after another, supersampled."""

    def __init__(self, resolution: int, pose: _Pose, person: _Person) -> None:
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


def draw_face(seed: int, index: int, resolution: int) -> tuple[Tensor, Tensor]:
    """Draw one face and its mask.

    Args:
        seed: seed of the data set.
        index: number of the image; image i of seed s depends on (s, i) and nothing else.
        resolution: side in pixels.

    Returns:
        Image, uint8 [3, resolution, resolution], and mask, uint8 [resolution, resolution], of
        the ids of `DRAWN_CLASSES`.
    """
    rng = np.random.default_rng((seed, index))
    pose, person = _Pose.sample(rng), _Person.sample(rng)
    canvas = _Canvas(resolution, pose, person)
    _draw_background(canvas, rng)
    style = _HairStyle.sample(rng)
    _draw_behind(canvas, style, rng)
    _draw_head(canvas, rng)
    _draw_features(canvas, rng)
    _draw_hair(canvas, style, rng)
    _draw_occluders(canvas, rng)
    colors, cover = canvas.developed()
    colors = _texture(colors, cover, canvas, rng)
    colors = _light(colors, cover, canvas, rng)
    image = _photograph(colors, rng)
    mask = cover.argmax(axis=0).astype(np.uint8)
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(mask)


def _draw_background(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Smooth colours, then clutter, some of it in the colours of faces and hair."""
    coarse = rng.integers(2, 7)
    patches = _any_color(rng) + rng.normal(0, rng.uniform(4, 30), (coarse, coarse, 3))
    patches = np.clip(patches + rng.normal(0, rng.uniform(4, 40), (coarse, coarse, 1)), 0, 255)
    smooth = Image.fromarray(patches.astype(np.uint8))
    canvas.colors.paste(smooth.resize((canvas.side, canvas.side), Image.Resampling.BILINEAR))
    for _ in range(rng.integers(0, 12)):
        kind = rng.random()
        if kind < 0.25:
            color = _mixed(_SKIN_TONES, rng)
        elif kind < 0.4:
            color = _mixed(_HAIR_COLORS, rng)
        else:
            color = _any_color(rng)
        centre = rng.uniform(0, 1, 2)
        size = rng.uniform(0.03, 0.25)
        shape = rng.integers(4)
        if shape == 0:
            points = _ellipse(0, 0, size, size * rng.uniform(0.4, 1.3))
        elif shape == 1:
            points = size * np.array([(-1, -0.6), (1, -0.6), (1, 0.6), (-1, 0.6)])
        elif shape == 2:
            points = size * rng.uniform(-1, 1, (3, 2))
        else:
            points = np.array([(-1, -0.04), (1, -0.04), (1, 0.04), (-1, 0.04)]) * (1, 4 * size)
        canvas.fill_picture(_rotated(points, rng.uniform(0, math.pi)) + centre, color)


@dataclass(frozen=True)
class _HairStyle:
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
    def sample(cls, rng: np.random.Generator) -> _HairStyle:
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


def _draw_behind(canvas: _Canvas, style: _HairStyle, rng: np.random.Generator) -> None:
    """Hair behind the head, neck, shoulders."""
    person = canvas.person
    back = -0.25 * math.sin(canvas.pose.yaw)  # the back of the head goes against the face's turn
    width = person.half_width + style.volume
    hair = person.hair * 0.82
    if not style.bald:
        if style.bun:
            size = rng.uniform(0.2, 0.32)
            canvas.fill(_ellipse(back, -1 - style.volume, size, size), hair, HAIR)
        crown = _wavy(_ellipse(back, -0.1, width, 0.9 + style.volume, 48), style)
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
            canvas.fill(_wavy(_smooth(hanging), style), hair, HAIR)
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
        canvas.stroke(clothes[2:7], 0.08, _any_color(rng), BACKGROUND)


def _outline(canvas: _Canvas, grow: float = 0.0) -> Points:
    """The head's silhouette, clockwise from its right side, [64, 2]."""
    person = canvas.person
    angle = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    cos, y = np.cos(angle), np.sin(angle)
    exponent = np.where(y > 0, person.jaw, 0.85)
    x = (person.half_width + grow) * np.sign(cos) * np.abs(cos) ** exponent
    # The jaw goes with the turn of the head, the skull against it.
    return np.stack([x + 0.16 * math.sin(canvas.pose.yaw) * y, (1 + grow) * y], axis=1)


def _draw_head(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Ears, the shadow under the chin, and the face's skin."""
    person, yaw = canvas.person, canvas.pose.yaw
    ear_y, ear = person.eye_y + 0.12, rng.uniform(0.13, 0.2)
    for side in (-1, 1):
        # Turned to one side, the far ear goes behind the head and the near one comes in front.
        x = side * (person.half_width + 0.02) - 0.22 * math.sin(yaw)
        canvas.fill(_ellipse(x, ear_y, ear * 0.55, ear), person.skin * 0.92, SKIN)
        canvas.fill(_ellipse(x, ear_y, ear * 0.3, ear * 0.6), person.skin * 0.75, None)
    canvas.fill(_outline(canvas) * 0.97 + (0, 0.12), person.skin * 0.68, SKIN)
    canvas.fill(_outline(canvas), person.skin, SKIN)
    if rng.random() < 0.4:
        blush = person.skin * 0.8 + np.array([215, 90, 90]) * 0.2
        for side in (-1, 1):
            cheek = _ellipse(side * person.eye_x * 1.15, person.nose_y, 0.15, 0.1)
            canvas.fill(canvas.on_face(cheek), blush, None)


def _draw_features(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Beard, eyes, brows, nose and mouth."""
    person = canvas.person
    beard = rng.random()
    if beard < 0.14:
        _draw_beard(canvas, rng)
    tilt = rng.uniform(-0.06, 0.06)
    gaze = rng.uniform(-0.35, 0.35), rng.uniform(-0.15, 0.15)
    for side in (-1, 1):
        _draw_eye(canvas, side, tilt, gaze, rng)
    _draw_nose(canvas, rng)
    if beard < 0.22:
        reach = rng.uniform(0.7, 1.1) * person.mouth_width
        middle = (person.nose_y + person.mouth_y) / 2 + 0.05
        curve = np.array([(-reach, middle + 0.1), (0, middle - 0.01), (reach, middle + 0.1)])
        canvas.stroke(canvas.on_face(_smooth(curve, closed=False)), 0.09, person.hair * 0.9, HAIR)
    _draw_mouth(canvas)


def _draw_beard(canvas: _Canvas, rng: np.random.Generator) -> None:
    person = canvas.person
    outline = _outline(canvas, 0.02)
    lower = outline[(outline[:, 1] > 0.1)]
    lower = lower[np.argsort(-lower[:, 0])]
    top = np.array(
        [
            (-person.half_width * 0.8, 0.3),
            (-person.mouth_width * 1.2, person.mouth_y - rng.uniform(0.05, 0.15)),
            (0, person.mouth_y - 0.08),
            (person.mouth_width * 1.2, person.mouth_y - rng.uniform(0.05, 0.15)),
            (person.half_width * 0.8, 0.3),
        ]
    )
    canvas.fill(np.concatenate([lower, canvas.on_face(top)]), person.hair * 0.9, HAIR)


def _draw_eye(
    canvas: _Canvas, side: int, tilt: float, gaze: tuple[float, float], rng: np.random.Generator
) -> None:
    person = canvas.person
    x, y, width = side * person.eye_x, person.eye_y, person.eye_width
    height = width * person.eye_open
    angle = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    # Cubed sines taper the corners of the lids.
    lids = np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** 1.4
    almond = np.stack([width * np.cos(angle), height * lids], axis=1)
    almond[:, 1] += side * tilt * almond[:, 0] / width
    centre = np.array([x, y])
    socket = canvas.on_face(_ellipse(x, y - 0.02, width * 1.25, max(height * 1.6, 0.09)))
    canvas.fill(socket, person.skin * 0.88, None)
    canvas.fill(canvas.on_face(almond + centre), np.array([238, 236, 232]), EYES)
    radius = min(width * 0.52, max(height * 1.05, 0.03))
    iris = centre + np.array([gaze[0] * width, gaze[1] * height])
    for share, color in ((1.0, person.iris), (0.5, np.array([12, 10, 10]))):
        disc = _ellipse(0, 0, radius * share, radius * share, 16)
        # Lids cover what of the iris goes beyond them.
        disc[:, 1] = np.clip(disc[:, 1], -height * 0.95, height * 0.95)
        canvas.fill(canvas.on_face(disc + iris), color, EYES)
    glint = _ellipse(iris[0] + radius * 0.3, iris[1] - radius * 0.3, 0.2 * radius, 0.2 * radius, 8)
    canvas.fill(canvas.on_face(glint), np.array([250, 250, 250]), None)
    upper = almond[angle >= math.pi] + centre
    canvas.stroke(canvas.on_face(upper), rng.uniform(0.01, 0.03), person.skin * 0.35, None)
    brow = np.array(
        [
            (x - width * 1.25, y - person.brow_gap + side * tilt),
            (x, y - person.brow_gap - 0.07),
            (x + width * 1.25, y - person.brow_gap - side * tilt),
        ]
    )
    canvas.stroke(canvas.on_face(_smooth(brow, closed=False)), person.brow_width, person.hair, HAIR)


def _draw_nose(canvas: _Canvas, rng: np.random.Generator) -> None:
    person = canvas.person
    top, base, width = person.eye_y + 0.04, person.nose_y, person.nose_width
    bridge = width * rng.uniform(0.28, 0.45)
    lift = np.array([0.02, 0.1, 0.16, 0.12, 0.16, 0.1, 0.02])
    corners = np.array(
        [
            (-bridge, top),
            (-bridge * 1.1, (top + base) / 2),
            (-width, base - 0.03),
            (0, base + 0.06),
            (width, base - 0.03),
            (bridge * 1.1, (top + base) / 2),
            (bridge, top),
        ]
    )
    shape = np.concatenate(
        [canvas.on_face(point[None], rise) for point, rise in zip(corners, lift, strict=True)]
    )
    canvas.fill(_smooth(shape), person.skin * rng.uniform(0.86, 0.94), NOSE)
    ridge = canvas.on_face(np.array([(0, top), (0, base - 0.06)]), 0.14)
    canvas.stroke(ridge, bridge * 0.7, np.minimum(person.skin * 1.1, 255), None)
    tip = canvas.on_face(_ellipse(0, base - 0.05, width * 0.5, 0.07), 0.18)
    canvas.fill(tip, person.skin * 1.02, None)
    for side in (-1, 1):
        nostril = _ellipse(side * width * 0.45, base + 0.005, width * 0.2, 0.025, 12)
        canvas.fill(canvas.on_face(nostril, 0.12), person.skin * 0.4, None)


def _draw_mouth(canvas: _Canvas) -> None:
    person = canvas.person
    y, width, lip, gap = person.mouth_y, person.mouth_width, person.lip, person.mouth_open
    across = np.linspace(-1, 1, 13)
    corner = -person.smile * across**2
    arch = 1 - across**2
    bow = 1 + 0.25 * np.cos(across * 3 * math.pi) * arch
    upper = y + corner - lip * arch * bow
    lower = y + corner + (1.25 * lip + gap) * arch
    outer = np.concatenate(
        [np.stack([across, upper], 1), np.stack([across[::-1], lower[::-1]], 1)]
    ) * (width, 1)
    canvas.fill(canvas.on_face(outer, 0.04), person.lips, MOUTH)
    if gap:
        inner_top, inner_low = y + corner, y + corner + gap * arch
        inside = np.concatenate(
            [np.stack([across, inner_top], 1), np.stack([across[::-1], inner_low[::-1]], 1)]
        ) * (width * 0.85, 1)
        canvas.fill(canvas.on_face(inside, 0.03), np.array([70, 20, 24]), MOUTH)
        teeth = inside.copy()
        teeth[13:, 1] = inside[12::-1, 1] + 0.45 * (teeth[13:, 1] - inside[12::-1, 1])
        canvas.fill(canvas.on_face(teeth, 0.03), np.array([232, 228, 218]), MOUTH)
    else:
        line = np.stack([across * width * 0.95, y + corner + 0.1 * lip], axis=1)
        canvas.stroke(canvas.on_face(line, 0.04), 0.018, person.lips * 0.5, None)


def _draw_hair(canvas: _Canvas, style: _HairStyle, rng: np.random.Generator) -> None:
    """Hair on the skull down to the hairline, the fringe, and what hangs over the cheeks."""
    if style.bald:
        return
    person = canvas.person
    temple = person.half_width * 0.97
    skull = _wavy(_outline(canvas, style.volume), style)
    skull = skull[(skull[:, 1] <= style.sideburn)]
    skull = skull[np.argsort(np.arctan2(skull[:, 1] - 0.4, skull[:, 0]))]
    line_x = np.linspace(temple, -temple, 9)
    along = line_x / temple
    line_y = style.hairline + style.peak * np.cos(2 * math.pi * along) * (1 - along**2)
    line_y = line_y + (style.sideburn - style.hairline) * np.abs(along) ** 3.5
    hairline = _smooth(canvas.on_face(np.stack([line_x, line_y], axis=1)), closed=False)
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
            canvas.fill(_wavy(_smooth(lock), style), person.hair * 1.05, HAIR)


def _draw_fringe(canvas: _Canvas, style: _HairStyle, rng: np.random.Generator) -> None:
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


def _draw_occluders(canvas: _Canvas, rng: np.random.Generator) -> None:
    """Glasses, a hat, a hand, a ball: all of class background."""
    if rng.random() < 0.25:
        _draw_glasses(canvas, rng)
    if rng.random() < 0.12:
        _draw_hat(canvas, rng)
    chance = rng.random()
    if chance < 0.08:
        ball = _ellipse(*rng.uniform(0.15, 0.85, 2), *(rng.uniform(0.06, 0.16) * np.ones(2)))
        color = _any_color(rng)
        canvas.fill_picture(ball, color)
        centre = ball.mean(axis=0)
        canvas.fill_picture(centre + (ball - centre) * 0.5 - 0.03, np.minimum(color * 1.3, 255))
    elif chance < 0.15:
        _draw_hand(canvas, rng)


def _draw_glasses(canvas: _Canvas, rng: np.random.Generator) -> None:
    person = canvas.person
    radius_x, radius_y = rng.uniform(0.2, 0.27), rng.uniform(0.14, 0.24)
    width = rng.uniform(0.025, 0.06)
    color = rng.uniform(5, 90, 3) if rng.random() < 0.8 else rng.uniform(120, 230, 3)
    dark = rng.random() < 0.3
    power = rng.uniform(0.4, 1.0)
    for side in (-1, 1):
        lens = _ellipse(
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


def _draw_hat(canvas: _Canvas, rng: np.random.Generator) -> None:
    person = canvas.person
    color = _any_color(rng)
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
        canvas.fill(_ellipse(shift, brow, brim, rng.uniform(0.08, 0.16)), color * 0.75, BACKGROUND)
    else:
        band = np.array([(shift - width, brow - 0.06), (shift + width, brow - 0.06)])
        canvas.stroke(band, 0.16, _any_color(rng), BACKGROUND)


def _draw_hand(canvas: _Canvas, rng: np.random.Generator) -> None:
    """A hand held before the face from below or from a side."""
    side = rng.choice([-1, 1])
    angle = rng.uniform(-0.5, 0.9) * side
    at = np.array([side * rng.uniform(0.3, 0.8), rng.uniform(0.5, 1.0)])
    color = canvas.person.skin * rng.uniform(0.75, 0.95)
    if rng.random() < 0.4:
        color = _any_color(rng)  # a glove

    def placed(points: Points) -> Points:
        return np.add(_rotated(points, -angle), at)

    canvas.fill(
        placed(np.array([(-0.2, 0.2), (0.2, 0.2), (0.22, 3), (-0.22, 3)])), color, BACKGROUND
    )
    canvas.fill(placed(_ellipse(0, 0.1, 0.3, 0.34)), color, BACKGROUND)
    for finger in range(4):
        x = -0.24 + 0.16 * finger
        tip = -rng.uniform(0.45, 0.65)
        canvas.fill(
            placed(_ellipse(x, (tip + 0.1) / 2, 0.075, (0.1 - tip) / 2 + 0.08, 14)),
            color,
            BACKGROUND,
        )
        gap = placed(np.array([(x + 0.08, 0.0), (x + 0.08, tip * 0.6)]))
        canvas.stroke(gap, 0.02, color * 0.6, BACKGROUND)


def _texture(
    colors: np.ndarray, cover: np.ndarray, canvas: _Canvas, rng: np.random.Generator
) -> np.ndarray:
    """Strands in the hair and a pattern in the background."""
    x, y = canvas.head_frame()
    bend = np.sin(2.1 * y + rng.uniform(0, 6)) * rng.uniform(0.2, 1.2)
    strands = np.sin(rng.uniform(14, 34) * np.arctan2(x, y + 1.6) * 2 + 3 * bend)
    gain = 1 + rng.uniform(0.02, 0.1) * strands * cover[HAIR]
    if rng.random() < 0.4:
        angle, pitch = rng.uniform(0, math.pi), rng.uniform(4, 16)
        stripes = np.sin(pitch * (x * math.cos(angle) + y * math.sin(angle)))
        if rng.random() < 0.4:
            stripes = stripes * np.sin(pitch * (y * math.cos(angle) - x * math.sin(angle)))
        gain = gain + rng.uniform(0.05, 0.3) * stripes * cover[BACKGROUND]
    shaded: np.ndarray = colors * gain[..., None]
    return shaded


def _light(
    colors: np.ndarray, cover: np.ndarray, canvas: _Canvas, rng: np.random.Generator
) -> np.ndarray:
    """Light the head as the ellipsoid it is, and the picture by a gradient."""
    x, y = canvas.head_frame()
    u, v = x / (canvas.person.half_width + 0.1), y / 1.1
    radius = np.sqrt(u * u + v * v)
    # Beyond the silhouette (hair, neck) the light is that of its rim.
    shrink = np.minimum(1, 0.97 / np.maximum(radius, 1e-6))
    u, v = u * shrink, v * shrink
    depth = np.sqrt(np.maximum(0, 1 - u * u - v * v))
    light = rng.normal(size=3) * (0.8, 0.5, 0.3) + (0, -0.35, 0.9)
    light /= np.linalg.norm(light)
    contrast = rng.uniform(0.15, 0.75)
    diffuse = np.maximum(0, u * light[0] + v * light[1] + depth * light[2])
    shade = 1.12 - contrast + contrast * 1.15 * diffuse
    head = 1 - cover[BACKGROUND]
    gain = 1 + head * (shade - 1)
    shine = rng.uniform(0, 45) * diffuse**12 * (cover[SKIN] + cover[NOSE] + 0.7 * cover[HAIR])
    slope = rng.uniform(-0.12, 0.12, 2)
    gain = gain * (1 + slope[0] * x + slope[1] * y).clip(0.55, 1.45)
    lit: np.ndarray = colors * gain[..., None] + shine[..., None]
    return lit


def _photograph(colors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Exposure, contrast, colour cast, blur and noise, as a camera would add; uint8 [r, r, 3]."""
    cast = rng.normal(1, 0.05, 3) * rng.uniform(0.82, 1.2)
    contrast = rng.uniform(0.75, 1.15)
    exposed = (colors * cast - 128) * contrast + 128 + rng.uniform(-12, 12)
    blur = rng.uniform(-0.006, 0.012) * colors.shape[0]
    if blur > 0.05:
        soft = Image.fromarray(np.clip(exposed, 0, 255).astype(np.uint8))
        exposed = np.asarray(soft.filter(ImageFilter.GaussianBlur(blur)), dtype=np.float32)
    if rng.random() < 0.06:
        exposed = np.repeat(exposed.mean(axis=2, keepdims=True), 3, axis=2)
    grain = rng.uniform(0, 6)
    # Last of all, since it draws more numbers the larger the picture is.
    noise = rng.standard_normal(colors.shape, dtype=np.float32) * grain
    image: np.ndarray = np.clip(np.rint(exposed + noise), 0, 255).astype(np.uint8)
    return image


def _mixed(palette: np.ndarray, rng: np.random.Generator) -> Rgb:
    """A colour between two neighbours of a palette, slightly off."""
    place = rng.uniform(0, len(palette) - 1)
    low = int(place)
    color: Rgb = palette[low] + (palette[low + 1] - palette[low]) * (place - low)
    return np.clip(color * rng.uniform(0.92, 1.08) + rng.normal(0, 5, 3), 0, 255)


def _any_color(rng: np.random.Generator) -> Rgb:
    """Any colour, most often a muted one."""
    grey = rng.uniform(20, 235)
    color: Rgb = grey + (rng.uniform(0, 255, 3) - grey) * rng.beta(1.2, 2)
    return color


def _rgb(color: Rgb) -> tuple[int, int, int]:
    red, green, blue = (int(min(max(channel, 0), 255)) for channel in color)
    return red, green, blue


def _ellipse(
    x: float, y: float, radius_x: float, radius_y: float, count: int = 28, power: float = 1.0
) -> Points:
    """A closed (super)ellipse; powers below 1 square it."""
    angle = np.linspace(0, 2 * math.pi, count, endpoint=False)
    cos, sin = np.cos(angle), np.sin(angle)
    if power != 1.0:
        cos, sin = np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power
    return np.stack([x + radius_x * cos, y + radius_y * sin], axis=1)


def _rotated(points: Points, angle: float) -> Points:
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _smooth(points: Points, closed: bool = True, steps: int = 5) -> Points:
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


def _wavy(points: Points, style: _HairStyle) -> Points:
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


def write_drawn(
    root: str | Path, resolution: int, labelled: int, unlabelled: int, seed: int = 0
) -> Path:
    """Write a drawn data set as a folder, whole or not at all.

    A folder already written with the same arguments is left as it is.

    Args:
        root: the folder to make.
        resolution: side of the images in pixels.
        labelled: number of images with masks, at least 3. Three tenths are the training pool (but
            10, or half of them, where that is more), half as many are `val`, the rest `test`.
        unlabelled: number of images without masks.
        seed: seed of the faces and of the draws.

    Returns:
        The folder.

    Raises:
        InputError: the folder holds something else, or too few labelled images are asked for.
        RunError: the disk is full or can't be written.
    """
    root = Path(root)
    if labelled < 3:
        raise InputError(f"labelled must be at least 3 (train, val, test), not {labelled}")
    made_by = {
        "resolution": resolution,
        "labelled": labelled,
        "unlabelled": unlabelled,
        "seed": seed,
    }
    if root.exists():
        record = root / "drawn.json"
        if record.exists() and read_json(record) == made_by:
            return root
        raise InputError(f"{root} exists and holds other data; choose another folder or remove it")
    with making(root) as partial:
        _write_faces(partial, resolution, labelled, unlabelled, seed)
        DRAWN_CLASSES.save(partial / "classes.json")
        _drawn_splits(labelled, seed).save(partial / "splits.json")
        write_json(partial / "drawn.json", made_by)
    return root


def _write_faces(root: Path, resolution: int, labelled: int, unlabelled: int, seed: int) -> None:
    for name in ("images", "masks", "unlabelled"):
        (root / name).mkdir()
    for index in tqdm(
        range(labelled + unlabelled), desc="drawing faces", unit="img", mininterval=1.0
    ):
        image, mask = draw_face(seed, index, resolution)
        has_mask = index < labelled
        folder = root / ("images" if has_mask else "unlabelled")
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(folder / f"{_stem(index)}.png", compress_level=1)
        if has_mask:
            DRAWN_CLASSES.write_mask(mask, root / "masks" / f"{_stem(index)}.png")


def _drawn_splits(labelled: int, seed: int) -> Splits:
    stems = [_stem(index) for index in range(labelled)]
    pool = max(min(_SHOTS, labelled // 2), 3 * labelled // 10)
    val = max(1, pool // 2)
    rng = np.random.default_rng(seed)
    draws = [[stems[i] for i in rng.permutation(pool)[:_SHOTS].tolist()] for _ in range(_DRAWS)]
    return Splits(draws, stems[pool : pool + val], stems[pool + val :], stems[:pool])


def _stem(index: int) -> str:
    return f"drawn_{index:05d}"
