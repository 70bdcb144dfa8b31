"""A step taken in parts, its penalties, and what stays or comes from elsewhere."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gpseg.errors import InputError
from gpseg.models.checkpoint import load_generator, save_generator
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.training.losses import path_lengths
from gpseg.training.pretrain_config import PretrainConfig
from gpseg.training.trainer import Trainer
from gpseg.training.transfer import transfer

SMALL = {
    "resolution": 16,
    "channel_base": 128,
    "channel_max": 8,
    "z_dim": 8,
    "mapping_layers": 2,
    "batch": 16,
    "augment": "none",
    "precision": "fp32",
    "device": "cpu",
}
CPU = torch.device("cpu")


def make(**options: object) -> Trainer:
    torch.manual_seed(0)
    config = PretrainConfig(Path(), **{**SMALL, **options})  # type: ignore[arg-type]
    trainer = Trainer(config, config.network(), CPU)
    for name, p in trainer.generator.named_parameters():
        if name.endswith("noise_strength"):
            p.data.fill_(0.3)
    return trainer


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (10, 3, 16, 16), generator=torch.Generator().manual_seed(3)).byte()


def gradients(trainer: Trainer, images: Tensor) -> dict[str, Tensor]:
    """The gradients of every kind of step, before the optimisers move anything."""
    found: dict[str, Tensor] = {}
    for optimizer in (trainer.optimizer_g, trainer.optimizer_d):
        optimizer.step = lambda: None  # type: ignore[method-assign]
    models = trainer.generator, trainer.discriminator
    batch = next(trainer.batches(images))
    reals = trainer._reals(batch)
    fakes, _ = trainer._generator_step(batch.mixed_from)
    found |= {f"g.{n}": p.grad.clone() for n, p in models[0].named_parameters()}
    found["w_avg"] = models[0].mapping.w_avg.clone()
    trainer._path_length_step(batch.mixed_from)
    found |= {
        f"p.{n}": p.grad.clone() for n, p in models[0].named_parameters() if p.grad is not None
    }
    found["path_length_mean"] = trainer.path_length_mean.clone()
    trainer._discriminator_step(fakes, reals)
    found |= {f"d.{n}": p.grad.clone() for n, p in models[1].named_parameters()}
    trainer._r1_step(reals)
    found |= {
        f"r.{n}": p.grad.clone() for n, p in models[1].named_parameters() if p.grad is not None
    }
    return found


@pytest.mark.parametrize("micro_batch", [4, 8])
def test_micro_batches_sum_up_to_the_batch(images: Tensor, micro_batch: int) -> None:
    options = {"path_length_weight": 2.0, "style_mixing": 1.0}
    whole = gradients(make(**options), images)
    parts = gradients(make(**options, micro_batch=micro_batch), images)
    assert whole.keys() == parts.keys() and len(whole) > 80
    for name, gradient in whole.items():
        scale = gradient.abs().max().item() + 1e-6
        torch.testing.assert_close(parts[name], gradient, rtol=0, atol=2e-4 * scale, msg=name)


def test_path_lengths() -> None:
    """Of a linear map from w to images, whose Jacobian is known."""
    ws = torch.randn(3, 2, 5, requires_grad=True)
    matrix = torch.randn(2, 5, 3 * 4 * 4)
    noise = torch.randn(3, 3, 4, 4)
    images = torch.einsum("nlw,lwp->np", ws, matrix).view(3, 3, 4, 4)
    back = torch.einsum("np,lwp->nlw", noise.flatten(1), matrix) / 4
    expected = back.square().sum(2).mean(1).sqrt()
    torch.testing.assert_close(path_lengths(images, ws, noise), expected)


def test_path_length_draws_the_lengths_together(images: Tensor) -> None:
    trainer = make(path_length_weight=2.0, path_length_interval=2)
    values = [trainer.step(images) for _ in range(3)]
    assert ["path_length" in v for v in values] == [True, False, True]
    first, second = values[0]["path_length"], values[2]["path_length"]
    mean = 0.01 * first
    assert trainer.path_length_mean == pytest.approx((mean + 0.01 * (second - mean)).item())
    again = make(path_length_weight=2.0, path_length_interval=2)
    again.load_state_dict(trainer.state_dict())
    assert again.path_length_mean == trainer.path_length_mean > 0


def test_a_penalty_keeps_the_pace() -> None:
    group = make(path_length_weight=2.0, path_length_interval=4).optimizer_g.param_groups[0]
    assert group["lr"] == pytest.approx(0.0025 * 4 / 5)
    assert group["betas"][1] == pytest.approx(0.99 ** (4 / 5))
    assert make().optimizer_g.param_groups[0]["lr"] == 0.0025


def test_frozen_blocks_stay(images: Tensor) -> None:
    trainer = make(freeze_d=1)
    before = {n: p.clone() for n, p in trainer.discriminator.named_parameters()}
    for _ in range(2):
        trainer.step(images)
    for name, p in trainer.discriminator.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("b16."), name


def checkpoint(path: Path, resolution: int = 16, **options: int) -> NetworkConfig:
    widths = {"z_dim": 8, "w_dim": 8, "channel_base": 128, "channel_max": 8, "mapping_layers": 2}
    network = NetworkConfig(resolution, **{**widths, **options})
    torch.manual_seed(5)
    save_generator(path, network.generator(), network.discriminator(), network)
    return network


def test_transfer_takes_everything_of_the_same_networks(tmp_path: Path) -> None:
    checkpoint(tmp_path / "g")
    trainer = make(transfer=tmp_path / "g")
    said = transfer(tmp_path / "g", trainer)
    generator, discriminator, _, _ = load_generator(tmp_path / "g")
    for own, other in (
        (trainer.generator, generator),
        (trainer.generator_ema, generator),
        (trainer.discriminator, discriminator),
    ):
        for name, tensor in own.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
    total = len(generator.state_dict()) + len(discriminator.state_dict())
    assert said.endswith(f"{total} of {total} tensors taken")


def test_transfer_to_another_resolution_takes_what_fits(tmp_path: Path) -> None:
    checkpoint(tmp_path / "g", 32)
    trainer = make(transfer=tmp_path / "g", channel_base=128, channel_max=8)
    said = transfer(tmp_path / "g", trainer)
    generator, _, _, _ = load_generator(tmp_path / "g")
    assert torch.equal(
        trainer.generator_ema.synthesis.b8.conv0.weight, generator.synthesis.b8.conv0.weight
    )
    assert "; new: D b16.fromrgb.weight" in said


def test_transfer_of_nothing_is_refused(tmp_path: Path) -> None:
    trainer = make()
    for model in (trainer.generator, trainer.discriminator):
        names = {name: f"other.{name}" for name in model.state_dict()}
        tensors = {names[name]: tensor for name, tensor in model.state_dict().items()}
        model.state_dict = lambda tensors=tensors: tensors  # type: ignore[method-assign]
    checkpoint(tmp_path / "g")
    with pytest.raises(InputError, match="fits by name and shape"):
        transfer(tmp_path / "g", trainer)


def test_float16_keeps_low_resolutions_in_float32() -> None:
    network = NetworkConfig(64, 3, 8, 8, 256, 8, 1, 256.0)
    build = (torch.float16, False, 32)
    features, image = network.generator(*build).synthesis.features_and_image(
        torch.randn(1, 10, 8), noise_mode="none"
    )
    assert [x.dtype for x in features.values()] == [torch.float32] * 3 + [torch.float16] * 2
    assert image.dtype == torch.float32
    features = network.discriminator(*build).features(image)
    assert [r for r, x in features.items() if x.dtype == torch.float16] == [64, 32, 16]


def test_float16_gradients_that_overflow_are_bounded(images: Tensor) -> None:
    trainer = make()
    trainer.dtype = torch.float16
    p = next(trainer.generator.parameters())
    trainer._descend(trainer.optimizer_g, iter([(p * math.inf).sum()]))
    assert all(q.isfinite().all() for q in trainer.generator.parameters())
