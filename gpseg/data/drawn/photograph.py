"""From flat colours to what a camera would have seen."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from gpseg.data.drawn.canvas import BACKGROUND, HAIR, NOSE, SKIN, Canvas


def add_texture(
    colors: np.ndarray, cover: np.ndarray, canvas: Canvas, rng: np.random.Generator
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


def add_light(
    colors: np.ndarray, cover: np.ndarray, canvas: Canvas, rng: np.random.Generator
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


def photograph(colors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
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
