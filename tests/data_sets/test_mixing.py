"""Images take colours and parts of others."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gpseg.data import color_parts, half_the_parts, take_colors


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_images_take_the_mean_and_covariance_of_others(seed: int) -> None:
    random = _generator(seed)
    # The identity outweighs the rest, so that no direction of colour is next to empty: there a covariance is left as it is.
    mix = 0.15 * (torch.eye(3) + (torch.rand(2, 3, 3, generator=random) - 0.5) / 2)
    colors = (mix @ torch.randn(2, 3, 16 * 24, generator=random).clamp(-2, 2)).view(2, 3, 16, 24)
    images, sources = colors[:1], colors[1:, :, :8]
    got = take_colors(images, sources, torch.ones(1))
    assert got.abs().max() < 1  # else the clamp has cut something off

    def moments(x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(2).mean(2), x[0].flatten(1).cov()

    for found, wanted in zip(moments(got), moments(sources), strict=True):
        assert (found - wanted).norm() < 0.05 * wanted.norm().clamp(min=0.01)


def test_colors_are_taken_as_far_as_asked() -> None:
    images, sources = torch.rand(2, 3, 3, 8, 8, generator=_generator()) * 2 - 1
    none, half, whole = (take_colors(images, sources, torch.full((3,), x)) for x in (0.0, 0.5, 1.0))
    torch.testing.assert_close(none, images, atol=1e-5, rtol=0)
    assert ((whole - images).abs().mean() > (half - images).abs().mean()).item()
    each = take_colors(images, sources, torch.tensor([0.0, 1.0, 0.0]))
    assert each[1].equal(whole[1])
    torch.testing.assert_close(each[0], images[0], atol=1e-5, rtol=0)
    flat = torch.zeros(1, 3, 4, 4)
    assert take_colors(flat, sources[:1], torch.ones(1)).isfinite().all()


def test_parts_take_the_mean_colour_asked_for() -> None:
    random = _generator()
    images = 0.3 * (2 * torch.rand(2, 3, 6, 5, generator=random) - 1)
    masks = torch.randint(3, (2, 6, 5), generator=random, dtype=torch.uint8)
    masks[:, 0] = 255
    colors = 0.5 * (2 * torch.rand(2, 3, 3, generator=random) - 1)
    shares = torch.tensor([[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]])
    moved = color_parts(images, masks, colors, shares)
    assert moved[:, :, 0].equal(images[:, :, 0])  # of no class
    for n in range(2):
        for c in range(3):
            before, after = (x[n][:, masks[n] == c] for x in (images, moved))
            mean = torch.lerp(before.mean(1), colors[n, c], shares[n, c])
            torch.testing.assert_close(after.mean(1), mean)
            torch.testing.assert_close(
                after - before, (mean - before.mean(1))[:, None].expand_as(after)
            )
    white = color_parts(images, masks, torch.full((2, 3, 3), 5.0), torch.ones(2, 3))
    assert white.max() == 1


@given(seed=st.integers(0, 2**32), occurring=st.integers(1, 6), k=st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_half_of_the_parts_that_occur(seed: int, occurring: int, k: int) -> None:
    random = _generator(seed)
    masks = torch.randint(occurring, (4, 5, 7), generator=random, dtype=torch.uint8)
    masks[:, 0] = 255
    order = torch.rand(4, k, generator=random)
    taken = half_the_parts(masks, order)
    for mask, own, keys in zip(masks, taken, order, strict=True):
        present = [c for c in mask.unique().tolist() if c < k]
        ids = set(mask[own].tolist())
        assert ids == {*sorted(present, key=keys.tolist().__getitem__)[: (len(present) + 1) // 2]}
        assert own.equal(sum((mask == c for c in ids), torch.zeros_like(own)) > 0)  # whole parts


def test_of_nothing_no_parts_are_taken() -> None:
    assert not half_the_parts(torch.full((2, 3, 3), 255).byte(), torch.rand(2, 4)).any()
