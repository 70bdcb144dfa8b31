"""Colours: of skin, hair and irises, and any other."""

from __future__ import annotations

import numpy as np

Rgb = np.ndarray  # [3], 0..255

SKIN_TONES = np.array(
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

HAIR_COLORS = np.array(
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

IRIS_COLORS = np.array(
    [(70, 44, 26), (110, 74, 40), (70, 110, 160), (80, 130, 90), (110, 120, 128)], dtype=float
)


def mixed(palette: np.ndarray, rng: np.random.Generator) -> Rgb:
    """A colour between two neighbours of a palette, slightly off."""
    place = rng.uniform(0, len(palette) - 1)
    low = int(place)
    color: Rgb = palette[low] + (palette[low + 1] - palette[low]) * (place - low)
    return np.clip(color * rng.uniform(0.92, 1.08) + rng.normal(0, 5, 3), 0, 255)


def any_color(rng: np.random.Generator) -> Rgb:
    """Any colour, most often a muted one."""
    grey = rng.uniform(20, 235)
    color: Rgb = grey + (rng.uniform(0, 255, 3) - grey) * rng.beta(1.2, 2)
    return color
