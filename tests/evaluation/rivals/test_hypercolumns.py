import torch
from torch import Tensor
from torch.nn import functional as F

from gpseg.evaluation.rivals.hypercolumns import Moments, columns_at

RESOLUTION = 16


def some_maps(images: int, dtype: torch.dtype = torch.float32) -> dict[int, Tensor]:
    """Feature maps, finest first, with channels of very different mean and size."""
    random = torch.Generator().manual_seed(0)
    maps = {}
    for r, channels in ((16, 2), (8, 4), (4, 5)):
        x = torch.randn(images, channels, r, r, generator=random)
        x = (
            x * torch.logspace(-1, 2, channels)[:, None, None]
            + 50 * torch.arange(channels)[:, None, None]
        )
        maps[r] = x.to(dtype, memory_format=torch.channels_last)
    return maps


def dense(maps: dict[int, Tensor]) -> Tensor:
    """All hypercolumns [N, ΣC, R, R], laid out as the usual implementations do."""
    return torch.cat(
        [
            F.interpolate(maps[r].float(), size=RESOLUTION, mode="bilinear", align_corners=False)
            for r in sorted(maps)
        ],
        dim=1,
    )


def test_columns_are_those_of_the_dense_matrix_at_these_pixels() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        maps = some_maps(3, dtype)
        places = torch.stack([torch.randperm(RESOLUTION**2)[:90] for _ in range(3)])
        places[:, :4] = torch.tensor([0, 15, 240, 255])  # corners
        wanted = dense(maps).flatten(2).gather(2, places[:, None].expand(-1, 11, -1))
        got = columns_at(maps, places, RESOLUTION)
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-3)


def test_streamed_moments_are_those_of_the_dense_matrix() -> None:
    maps = some_maps(7)
    moments = Moments(RESOLUTION)
    for part in (slice(0, 1), slice(1, 4), slice(4, 7)):
        moments.add({r: x[part] for r, x in maps.items()})
    wanted = dense(maps).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(moments.mean, wanted.mean(1).float(), rtol=1e-5, atol=1e-5)
    deviation = wanted.std(1, correction=0).float()
    torch.testing.assert_close(moments.deviation, deviation, rtol=1e-5, atol=1e-6)


def test_a_channel_that_does_not_vary_is_not_blown_up() -> None:
    moments = Moments(RESOLUTION)
    moments.add({16: torch.full((2, 1, 16, 16), 3.0), 4: torch.full((2, 1, 4, 4), -70.1)})
    assert moments.deviation.tolist() == [1, 1]
