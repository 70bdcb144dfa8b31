"""Head, eyes, nose, mouth, eyebrows and beard."""

from __future__ import annotations

import math

import numpy as np

from gpseg.data.drawn.canvas import EYES, HAIR, MOUTH, NOSE, SKIN, Canvas
from gpseg.data.drawn.shapes import Points, ellipse, smooth


def draw_head(canvas: Canvas, rng: np.random.Generator) -> None:
    """Ears, the shadow under the chin, and the face's skin."""
    person, yaw = canvas.person, canvas.pose.yaw
    ear_y, ear = person.eye_y + 0.12, rng.uniform(0.13, 0.2)
    for side in (-1, 1):
        # Turned to one side, the far ear goes behind the head and the near one comes in front.
        x = side * (person.half_width + 0.02) - 0.22 * math.sin(yaw)
        canvas.fill(ellipse(x, ear_y, ear * 0.55, ear), person.skin * 0.92, SKIN)
        canvas.fill(ellipse(x, ear_y, ear * 0.3, ear * 0.6), person.skin * 0.75, None)
    canvas.fill(outline_of(canvas) * 0.97 + (0, 0.12), person.skin * 0.68, SKIN)
    canvas.fill(outline_of(canvas), person.skin, SKIN)
    if rng.random() < 0.4:
        blush = person.skin * 0.8 + np.array([215, 90, 90]) * 0.2
        for side in (-1, 1):
            cheek = ellipse(side * person.eye_x * 1.15, person.nose_y, 0.15, 0.1)
            canvas.fill(canvas.on_face(cheek), blush, None)


def outline_of(canvas: Canvas, grow: float = 0.0) -> Points:
    """The head's silhouette, clockwise from its right side, [64, 2]."""
    person = canvas.person
    angle = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    cos, y = np.cos(angle), np.sin(angle)
    exponent = np.where(y > 0, person.jaw, 0.85)
    x = (person.half_width + grow) * np.sign(cos) * np.abs(cos) ** exponent
    # The jaw goes with the turn of the head, the skull against it.
    return np.stack([x + 0.16 * math.sin(canvas.pose.yaw) * y, (1 + grow) * y], axis=1)


def draw_features(canvas: Canvas, rng: np.random.Generator) -> None:
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
        canvas.stroke(canvas.on_face(smooth(curve, closed=False)), 0.09, person.hair * 0.9, HAIR)
    _draw_mouth(canvas)


def _draw_beard(canvas: Canvas, rng: np.random.Generator) -> None:
    person = canvas.person
    outline = outline_of(canvas, 0.02)
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
    canvas: Canvas, side: int, tilt: float, gaze: tuple[float, float], rng: np.random.Generator
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
    socket = canvas.on_face(ellipse(x, y - 0.02, width * 1.25, max(height * 1.6, 0.09)))
    canvas.fill(socket, person.skin * 0.88, None)
    canvas.fill(canvas.on_face(almond + centre), np.array([238, 236, 232]), EYES)
    radius = min(width * 0.52, max(height * 1.05, 0.03))
    iris = centre + np.array([gaze[0] * width, gaze[1] * height])
    for share, color in ((1.0, person.iris), (0.5, np.array([12, 10, 10]))):
        disc = ellipse(0, 0, radius * share, radius * share, 16)
        # Lids cover what of the iris goes beyond them.
        disc[:, 1] = np.clip(disc[:, 1], -height * 0.95, height * 0.95)
        canvas.fill(canvas.on_face(disc + iris), color, EYES)
    glint = ellipse(iris[0] + radius * 0.3, iris[1] - radius * 0.3, 0.2 * radius, 0.2 * radius, 8)
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
    canvas.stroke(canvas.on_face(smooth(brow, closed=False)), person.brow_width, person.hair, HAIR)


def _draw_nose(canvas: Canvas, rng: np.random.Generator) -> None:
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
    canvas.fill(smooth(shape), person.skin * rng.uniform(0.86, 0.94), NOSE)
    ridge = canvas.on_face(np.array([(0, top), (0, base - 0.06)]), 0.14)
    canvas.stroke(ridge, bridge * 0.7, np.minimum(person.skin * 1.1, 255), None)
    tip = canvas.on_face(ellipse(0, base - 0.05, width * 0.5, 0.07), 0.18)
    canvas.fill(tip, person.skin * 1.02, None)
    for side in (-1, 1):
        nostril = ellipse(side * width * 0.45, base + 0.005, width * 0.2, 0.025, 12)
        canvas.fill(canvas.on_face(nostril, 0.12), person.skin * 0.4, None)


def _draw_mouth(canvas: Canvas) -> None:
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
