"""One face."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gpseg.data.drawn.canvas import Canvas, Person, Pose
from gpseg.data.drawn.colors import HAIR_COLORS, SKIN_TONES, any_color, mixed
from gpseg.data.drawn.hair import HairStyle, draw_behind, draw_hair
from gpseg.data.drawn.head import draw_features, draw_head
from gpseg.data.drawn.occluders import draw_occluders
from gpseg.data.drawn.photograph import add_light, add_texture, photograph
from gpseg.data.drawn.shapes import ellipse, rotated


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
    pose, person = Pose.sample(rng), Person.sample(rng)
    canvas = Canvas(resolution, pose, person)
    _draw_background(canvas, rng)
    style = HairStyle.sample(rng)
    draw_behind(canvas, style, rng)
    draw_head(canvas, rng)
    draw_features(canvas, rng)
    draw_hair(canvas, style, rng)
    draw_occluders(canvas, rng)
    colors, cover = canvas.developed()
    colors = add_texture(colors, cover, canvas, rng)
    colors = add_light(colors, cover, canvas, rng)
    image = photograph(colors, rng)
    mask = cover.argmax(axis=0).astype(np.uint8)
    return torch.from_numpy(image.transpose(2, 0, 1).copy()), torch.from_numpy(mask)


def _draw_background(canvas: Canvas, rng: np.random.Generator) -> None:
    """Smooth colours, then clutter, some of it in the colours of faces and hair."""
    coarse = rng.integers(2, 7)
    patches = any_color(rng) + rng.normal(0, rng.uniform(4, 30), (coarse, coarse, 3))
    patches = np.clip(patches + rng.normal(0, rng.uniform(4, 40), (coarse, coarse, 1)), 0, 255)
    smooth = Image.fromarray(patches.astype(np.uint8))
    canvas.colors.paste(smooth.resize((canvas.side, canvas.side), Image.Resampling.BILINEAR))
    for _ in range(rng.integers(0, 12)):
        kind = rng.random()
        if kind < 0.25:
            color = mixed(SKIN_TONES, rng)
        elif kind < 0.4:
            color = mixed(HAIR_COLORS, rng)
        else:
            color = any_color(rng)
        centre = rng.uniform(0, 1, 2)
        size = rng.uniform(0.03, 0.25)
        shape = rng.integers(4)
        if shape == 0:
            points = ellipse(0, 0, size, size * rng.uniform(0.4, 1.3))
        elif shape == 1:
            points = size * np.array([(-1, -0.6), (1, -0.6), (1, 0.6), (-1, 0.6)])
        elif shape == 2:
            points = size * rng.uniform(-1, 1, (3, 2))
        else:
            points = np.array([(-1, -0.04), (1, -0.04), (1, 0.04), (-1, 0.04)]) * (1, 4 * size)
        canvas.fill_picture(rotated(points, rng.uniform(0, math.pi)) + centre, color)
