"""Each transform against an independent account of it, their frequencies, derivatives, and the controller."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gpseg.training.ada import GROUPS, LIMIT, SignController, Transforms, augment


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*size, generator=seeded(7), dtype=dtype)


def still(count: int = 1) -> Transforms:
    """Transforms that change nothing."""
    return Transforms.draw(count, 0.0, seeded())


def with_values(**values) -> Transforms:
    """Transforms of one image, neutral but for these."""
    neutral = still()
    dtypes = {name: getattr(neutral, name).dtype for name in values}
    return replace(
        neutral, **{name: torch.tensor([v], dtype=dtypes[name]) for name, v in values.items()}
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_probability_nothing_changes(dtype):
    x = noise(3, 3, 16, 16).to(dtype)
    assert augment(x, 0.0, seeded()) is x
    assert torch.equal(still(3)(x), x)


@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (0, -1), (-2, 2)])
@pytest.mark.parametrize("turns", [0, 1, 2, 3])
@pytest.mark.parametrize("flip", [False, True])
def test_pixels_are_copied_exactly(flip, turns, shift):
    x = noise(1, 3, 16, 16)
    y = with_values(flip=flip, turns=turns, shift=[s / 16 for s in shift])(x)
    expected = x[0].numpy()
    expected = expected[:, :, ::-1] if flip else expected
    expected = np.rot90(expected, turns, axes=(1, 2))
    right, down = shift
    padded = np.pad(expected, ((0, 0), (2, 2), (2, 2)), mode="reflect")
    expected = padded[:, 2 - down : 18 - down, 2 - right : 18 - right]
    assert np.array_equal(y[0].numpy(), expected)


def test_resampling_where_nothing_moves_gives_the_image_back():
    x = noise(1, 3, 24, 24, dtype=torch.float64)
    y = with_values(stretch=1 + 1e-12)(x)
    assert not torch.equal(y, x)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-5)


def test_resampling_shifts_whole_pixels_as_copying_does():
    x = noise(1, 3, 24, 24, dtype=torch.float64)
    shift = [2 / 24, -3 / 24]
    y = with_values(stretch=1 + 1e-12, shift=shift, flip=True, turns=1)(x)
    expected = with_values(shift=shift, flip=True, turns=1)(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-5)


def waves(side: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A smooth picture of side² pixels, and of what lies beyond: cosines are their own mirror images."""
    u, v = math.pi * x / (side - 1), math.pi * y / (side - 1)
    return np.stack(
        [
            np.cos(u) + 0.5 * np.cos(2 * v),
            np.cos(3 * u) * np.cos(v),
            np.cos(2 * u + 0 * v) * np.cos(3 * v),
        ]
    )


angles = st.floats(-math.pi, math.pi)
shares = st.floats(-0.25, 0.25)


@settings(max_examples=40, deadline=None)
@given(
    scale=st.floats(0.7, 1.6),
    turn_before=angles,
    stretch=st.floats(0.75, 1.33),
    turn_after=angles,
    move=st.tuples(shares, shares),
    shift=st.tuples(st.floats(-0.125, 0.125), st.floats(-0.125, 0.125)),
)
def test_warps_show_the_picture_from_where_it_was(
    scale, turn_before, stretch, turn_after, move, shift
):
    side = 64
    rows, columns = np.mgrid[:side, :side].astype(float)
    x = torch.from_numpy(waves(side, columns, rows))[None]
    y = with_values(
        scale=scale,
        turn_before=turn_before,
        stretch=stretch,
        turn_after=turn_after,
        move=list(move),
        shift=list(shift),
    )(x)
    # Point by point backwards, in complex numbers with y upwards, where a turn is a product.
    z = (columns - (side - 1) / 2) - 1j * (rows - (side - 1) / 2)
    z = z - side * (move[0] - 1j * move[1])
    z = z * np.exp(-1j * turn_after)
    z = (z.real / stretch + 1j * z.imag * stretch) * np.exp(-1j * turn_before) / scale
    z = z - (round(shift[0] * side) - 1j * round(shift[1] * side))
    assume(
        max(np.abs(z.real).max(), np.abs(z.imag).max()) < 0.95 * side
    )  # half a side beyond the edge
    expected = waves(side, z.real + (side - 1) / 2, -z.imag + (side - 1) / 2)
    # Bilinear lookup at twice the resolution costs about (π · 3 / 63 / 2)² / 8 of a wave.
    np.testing.assert_allclose(y[0].numpy(), expected, atol=0.005)


def test_no_border_shows_however_far_a_warp_reaches():
    x = torch.full((64, 3, 32, 32), 0.7)
    drawn = Transforms.draw(64, 1.0, seeded(), ("geometry",))
    for t in (drawn, replace(drawn, scale=0.3 * drawn.scale)):
        torch.testing.assert_close(t(x), x, rtol=0, atol=1e-4)


def test_an_image_does_not_depend_on_its_batch():
    x = noise(12, 3, 32, 32)
    drawn = Transforms.draw(12, 0.4, seeded(5))
    y = drawn(x)
    for i in range(12):
        one = Transforms(*(getattr(drawn, f.name)[i : i + 1] for f in fields(drawn)))
        torch.testing.assert_close(one(x[i : i + 1])[0], y[i], rtol=0, atol=2e-4)


def luma_and_chroma(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    luma = x.mean(1, keepdim=True)
    return luma, x - luma


def test_brightness_and_contrast():
    x = noise(1, 3, 16, 16)
    torch.testing.assert_close(with_values(brightness=0.3)(x), x + 0.3)
    torch.testing.assert_close(with_values(contrast=1.7)(x), x * 1.7)
    both = with_values(brightness=0.3, contrast=1.7)(x)
    torch.testing.assert_close(both, (x + 0.3) * 1.7)


def test_inverting_mirrors_luma_and_keeps_chroma():
    x = noise(1, 3, 16, 16)
    luma, chroma = luma_and_chroma(x)
    torch.testing.assert_close(with_values(invert=True)(x), chroma - luma)


def test_hue_turns_about_the_grey_axis():
    x = noise(1, 3, 16, 16)
    luma, chroma = luma_and_chroma(x)
    turned_luma, turned = luma_and_chroma(with_values(hue=1.0)(x))
    torch.testing.assert_close(turned_luma, luma)
    cosine = torch.cosine_similarity(turned, chroma, dim=1)
    torch.testing.assert_close(cosine, torch.full_like(cosine, math.cos(1.0)))
    torch.testing.assert_close(turned.norm(dim=1), chroma.norm(dim=1))
    third = with_values(hue=2 * math.pi / 3)(x)
    torch.testing.assert_close(third, x[:, [2, 0, 1]])


def test_saturation_scales_the_distance_from_grey():
    x = noise(1, 3, 16, 16)
    luma, chroma = luma_and_chroma(x)
    torch.testing.assert_close(with_values(saturation=0.0)(x), luma.expand_as(x))
    torch.testing.assert_close(with_values(saturation=1.5)(x), luma + 1.5 * chroma)


def test_colours_change_in_the_published_order():
    x = noise(1, 3, 16, 16)
    values = {"brightness": 0.2, "contrast": 0.7, "invert": True, "hue": 0.5, "saturation": 2.0}
    expected = x
    for name, value in values.items():
        expected = with_values(**{name: value})(expected)
    torch.testing.assert_close(with_values(**values)(x), expected)


def changed_share(t: Transforms, name: str) -> float:
    got, neutral = getattr(t, name), getattr(still(), name)
    return (got != neutral).reshape(len(got), -1).any(1).double().mean().item()


@pytest.mark.parametrize("p", [0.1, 0.6, 1.0])
def test_transforms_are_as_frequent_as_they_should_be(p):
    count = 6000
    t = Transforms.draw(count, p, seeded(1))
    one_turn = 1 - math.sqrt(1 - p)
    expected = {f.name: p for f in fields(t)}
    # The coin of a flip, and none of the turns being one of four.
    expected |= {"flip": p / 2, "invert": p / 2, "turns": 0.75 * p}
    expected |= {"turn_before": one_turn, "turn_after": one_turn}
    for name, share in expected.items():
        margin = 4 * math.sqrt(share * (1 - share) / count) + 1e-9
        assert changed_share(t, name) == pytest.approx(share, abs=margin), name
    either = ((t.turn_before != 0) | (t.turn_after != 0)).double().mean().item()
    assert either == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / count) + 1e-9)


def test_strengths():
    t = Transforms.draw(20000, 1.0, seeded(2))
    for values, deviation in (
        (t.scale.log2(), 0.2),
        (t.stretch.log2(), 0.2),
        (t.move, 0.125),
        (t.brightness, 0.2),
        (t.contrast.log2(), 0.5),
        (t.saturation.log2(), 1.0),
    ):
        assert values.std().item() == pytest.approx(deviation, rel=0.03)
        assert values.mean().item() == pytest.approx(0, abs=0.03 * deviation)
        kurtosis = (values**4).mean() / (values**2).mean() ** 2
        assert kurtosis.item() == pytest.approx(3, abs=0.2)
    for values, most in (
        (t.shift, 0.125),
        (t.turn_before, math.pi),
        (t.turn_after, math.pi),
        (t.hue, math.pi),
    ):
        assert values.abs().max() <= most
        assert values.std().item() == pytest.approx(most / math.sqrt(3), rel=0.02)
        assert values.mean().item() == pytest.approx(0, abs=0.03 * most)
    assert torch.bincount(t.turns, minlength=4).tolist() == pytest.approx([5000] * 4, rel=0.05)


def test_the_axes_of_a_shift_are_independent():
    t = Transforms.draw(20000, 1.0, seeded(3))
    for pairs in (t.shift, t.move):
        assert abs(torch.corrcoef(pairs.T)[0, 1].item()) < 0.03


@pytest.mark.parametrize("group", GROUPS)
def test_groups_can_be_used_alone(group):
    alone, every = (Transforms.draw(200, 0.8, seeded(4), groups) for groups in ((group,), GROUPS))
    used = {
        "blit": {"flip", "turns", "shift"},
        "geometry": {"scale", "turn_before", "stretch", "turn_after", "move"},
        "colour": {"brightness", "contrast", "invert", "hue", "saturation"},
    }[group]
    for f in fields(alone):
        if f.name in used:
            assert torch.equal(getattr(alone, f.name), getattr(every, f.name)), f.name
        else:
            assert changed_share(alone, f.name) == 0, f.name


def test_noise_keeps_mean_and_nearly_its_variance_where_only_pixels_move():
    x = noise(64, 3, 32, 32)
    copied = augment(x, 1.0, seeded(), ("blit",))
    assert copied.mean().item() == pytest.approx(x.mean().item(), abs=0.02)
    assert copied.var().item() == pytest.approx(x.var().item(), rel=0.03)
    smooth = torch.nn.functional.interpolate(noise(64, 3, 6, 6), 32, mode="bicubic")
    turned = replace(still(64), turn_after=torch.linspace(-3, 3, 64, dtype=torch.float64))(smooth)
    assert turned.mean().item() == pytest.approx(smooth.mean().item(), abs=0.02)
    assert turned.var().item() == pytest.approx(smooth.var().item(), rel=0.05)


def test_the_generator_decides():
    x = noise(6, 3, 16, 16)
    first, again, other = (augment(x, 0.7, seeded(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    generator = seeded(3)
    assert not torch.equal(augment(x, 0.7, generator), augment(x, 0.7, generator))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [16, 30, 128])
def test_sizes_and_types(side, dtype):
    x = noise(4, 3, side, side).to(dtype).requires_grad_(True)
    y = augment(x, 1.0, seeded(side))
    assert (y.shape, y.dtype) == (x.shape, dtype)
    (dx,) = torch.autograd.grad(y.float().square().sum(), x)
    assert y.isfinite().all()
    assert dx.isfinite().all()
    expected = augment(x.detach().float(), 1.0, seeded(side))
    torch.testing.assert_close(y.detach().float(), expected, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("p", [0.4, 1.0])
def test_derivatives_of_first_and_second_order(p):
    drawn = Transforms.draw(3, p, seeded(6))
    x = noise(3, 3, 16, 16, dtype=torch.float64).requires_grad_(True)
    assert torch.autograd.gradcheck(drawn, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(drawn, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: drawn(x) ** 3, x, fast_mode=True)


def test_the_gradient_is_the_adjoint():
    drawn = Transforms.draw(4, 1.0, seeded(8), ("blit", "geometry"))
    x = noise(4, 3, 16, 16, dtype=torch.float64).requires_grad_(True)
    y = drawn(x)
    dy = torch.randn(y.shape, generator=seeded(9), dtype=y.dtype)
    (dx,) = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close((dx * x).sum(), (dy * y).sum())


def logits(positive: int, negative: int) -> torch.Tensor:
    return torch.cat([torch.full((positive, 1), 2.5), torch.full((negative, 1), -0.1)])


def test_the_probability_rises_while_real_images_are_known_and_falls_otherwise():
    controller = SignController(target=0.6, kimg=1.0)
    for _ in range(4):
        controller.add(logits(15, 1))
    controller.adjust()
    assert controller.p == pytest.approx(64 / 1000)
    for _ in range(2):
        controller.add(logits(12, 4))  # a mean sign of 0.5
    controller.adjust()
    assert controller.p == pytest.approx(32 / 1000)
    controller.add(logits(16, 4))  # at the target
    controller.adjust()
    assert controller.p == pytest.approx(32 / 1000)
    controller.adjust()
    assert controller.p == pytest.approx(32 / 1000)


def test_the_probability_stays_within_its_limits():
    controller = SignController(kimg=0.1)
    for signs, end in ((logits(30, 0), LIMIT), (logits(0, 30), 0.0)):
        for _ in range(5):
            controller.add(signs)
            controller.adjust()
        assert controller.p == end


def test_an_equilibrium_is_found():
    """A discriminator whose overfitting p relieves in proportion: r = 0.9 − p."""
    controller = SignController(target=0.6, kimg=10.0)
    generator = seeded(0)
    seen = []
    for step in range(400):
        known = (1.9 - controller.p) / 2
        controller.add((torch.rand(64, 1, generator=generator) < known).float() * 2 - 1)
        controller.adjust()
        if step >= 200:
            seen.append(controller.p)
    assert np.mean(seen) == pytest.approx(0.3, abs=0.03)


def test_the_controller_goes_on_exactly():
    first = SignController(kimg=0.7)
    for positive in (16, 15, 3):
        first.add(logits(positive, 16 - positive))
        first.adjust()
    first.add(logits(14, 2))
    second = SignController(kimg=0.7)
    second.load_state_dict(first.state_dict())
    for controller in (first, second):
        controller.add(logits(13, 3))
        controller.adjust()
    assert first.p == second.p
    assert torch.equal(first.signs, second.signs)


def test_signs_of_several_processes_add_up():
    ranks = [SignController(kimg=1.0) for _ in range(2)]
    ranks[0].add(logits(16, 0))
    ranks[1].add(logits(13, 3))
    total = ranks[0].signs + ranks[1].signs
    for controller in ranks:
        controller.signs.copy_(total)
        controller.adjust()
        assert controller.p == pytest.approx(32 / 1000)
