"""Fine-tuning: it learns, it resumes exactly, and its losses leave out what is ignored."""

import math
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from gpseg.data import Classes, PartClass, UnlabelledImages, packed
from gpseg.errors import InputError, RunError
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.training.batches import Batch, Batches, TrainingSet
from gpseg.training.distributed import Ranks
from gpseg.training.finetune import Finetuner, finetune
from gpseg.training.finetune_config import FinetuneConfig
from gpseg.training.losses import (
    PerceptualLoss,
    class_weights,
    masked_mean,
    part_cross_entropy,
    rarity,
)
from gpseg.training.run_folder import Interrupted, RunFolder

NETWORK = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
CLASSES = Classes((PartClass(0, "background", (0, 0, 0)), PartClass(1, "part", (255, 0, 0))))


def training_set() -> TrainingSet:
    """Bright discs on dark ground; the disc is the part, the lower edge is ignored."""
    ys, xs = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    centres = torch.tensor([[6, 6], [9, 7], [7, 10]])
    discs = torch.stack([((ys - y) ** 2 + (xs - x) ** 2 < 16) for y, x in centres])
    images = (discs * 180 + 40).to(torch.uint8)[:, None].repeat(1, 3, 1, 1)
    masks = discs.to(torch.uint8)
    masks[:, -2:] = 255
    return TrainingSet(images, masks, images.flip(3), CLASSES)


def make(steps: int = 4, data: TrainingSet | None = None, **options: object) -> Finetuner:
    torch.manual_seed(0)
    config = FinetuneConfig(
        steps=steps, labelled_batch=3, unlabelled_batch=2, precision="fp32", **options
    )  # type: ignore[arg-type]
    generator, discriminator = NETWORK.generator(), NETWORK.discriminator()
    device = torch.device("cpu")
    return Finetuner(config, data or training_set(), generator, discriminator, NETWORK, device)


def folder(path: Path) -> RunFolder:
    return RunFolder.open(path, "train", {})


def weights(trainer: Finetuner) -> list[torch.Tensor]:
    return [*trainer.model.state_dict().values(), *trainer.ema.state_dict().values()]


def test_it_learns_the_discs(tmp_path: Path) -> None:
    trainer = make(
        steps=150, lr=5e-3, lr_pretrained=5e-3, ramp_start=0.1, ramp_end=0.3, ema_share=0.02
    )
    with folder(tmp_path / "run") as run:
        finetune(trainer, run, lambda: False)
    data = training_set()
    valid = data.masks != 255
    for readout, p in trainer.segmenter().outputs(data.images).probabilities.items():
        accuracy = (p.argmax(1) == data.masks)[valid].float().mean()
        assert accuracy > 0.95, readout


@pytest.mark.parametrize("after", [1, 3])
def test_resumed_run_equals_straight_run(tmp_path: Path, after: int) -> None:
    straight = make(steps=6)
    with folder(tmp_path / "straight") as run:
        finetune(straight, run, lambda: False)
    stopped = make(steps=6)
    with folder(tmp_path / "stopped") as run:
        with pytest.raises(Interrupted):
            finetune(stopped, run, lambda: stopped.steps >= after)
        state = run.load_state()
    assert state is not None and state["steps"] == after
    resumed = make(steps=6)
    resumed.load_state_dict(state)
    with folder(tmp_path / "resumed") as run:
        finetune(resumed, run, lambda: False)
    for a, b in zip(weights(straight), weights(resumed), strict=True):
        assert torch.equal(a, b)


def test_packed_unlabelled_images_give_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packed, "_SMALL", -1)
    monkeypatch.setattr(packed, "_memory", lambda: 0)  # made ahead
    data = training_set()
    assert isinstance(data.unlabelled, torch.Tensor)
    paths = [tmp_path / f"{i}.png" for i in range(len(data.unlabelled))]
    for path, image in zip(paths, data.unlabelled, strict=True):
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path)
    mapped = replace(data, unlabelled=UnlabelledImages(paths, 16))
    kept, ahead = make(steps=6, data=data), make(steps=6, data=mapped)
    with folder(tmp_path / "kept") as run:
        finetune(kept, run, lambda: False)
    with folder(tmp_path / "ahead") as run:
        with pytest.raises(Interrupted):
            finetune(ahead, run, lambda: ahead.steps >= 3)
        state = run.load_state()
    assert state is not None
    resumed = make(steps=6, data=mapped)
    resumed.load_state_dict(state)
    with folder(tmp_path / "resumed") as run:
        finetune(resumed, run, lambda: False)
    for a, b in zip(weights(kept), weights(resumed), strict=True):
        assert torch.equal(a, b)


def test_same_seed_same_weights() -> None:
    a, b = make(), make()
    a.step(), b.step()
    assert all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def test_controls_build_and_step() -> None:
    for options in ({"crossing": False}, {"ramp": "direct"}, {"pretrained": False}):
        values = make(**options).step()
        assert all(torch.isfinite(v) for v in values.values())
    assert make(ramp="direct").step()["a"] == 1
    alone = make()
    alone.config.unlabelled_batch = 0
    assert torch.isfinite(alone.step()["loss"])


def test_streams_are_one_until_the_ramp_starts() -> None:
    trainer = make(steps=10, ramp_start=0.2, ramp_end=0.5)
    model, start = trainer.model, trainer.model.segmentation_stream.block(16).conv1.weight.clone()
    names = [{*trainer.step()} for _ in range(2)]
    assert names == [{"image", "perceptual", "loss", "a"}] * 2
    assert torch.equal(model.segmentation_stream.block(16).conv1.weight, start)
    assert not torch.equal(model.image_stream.block(16).conv1.weight, start)
    images = training_set().images
    trainer._part_streams()
    for networks in (model, trainer.ema):
        streams = networks(images.float() / 255)
        assert torch.equal(streams.colours, streams.reconstruction)
    first = trainer.optimizer.state[model.image_stream.block(16).conv1.weight]
    second = trainer.optimizer.state[model.segmentation_stream.block(16).conv1.weight]
    assert torch.equal(first["exp_avg"], second["exp_avg"])
    assert first["exp_avg"].data_ptr() != second["exp_avg"].data_ptr()
    assert "map" in trainer.step()
    assert not torch.equal(first["exp_avg"], second["exp_avg"])


def test_after_the_ramp_the_image_stream_learns_now_and_then() -> None:
    trainer = make(steps=10, ramp_start=0.1, ramp_end=0.3, image_interval=4)
    learned = []
    for _ in range(10):
        names = trainer.step()
        grad = trainer.model.image_stream.block(16).conv1.weight.grad
        assert ("image" in names) == ("perceptual" in names) == (grad is not None)
        learned.append(grad is not None)
    # in every step up to the ramp's end, the fourth, then in every fourth
    assert [step for step, yes in enumerate(learned) if yes] == [0, 1, 2, 4, 8]


def test_random_start_shares_nothing_with_the_generator() -> None:
    start = make().model.image_stream.block(16).conv1.weight
    control = make(pretrained=False).model.image_stream.block(16).conv1.weight
    assert not torch.equal(start, control)


def test_nan_stops_the_run_with_one_line(tmp_path: Path) -> None:
    trainer = make()
    with torch.no_grad():
        trainer.model.encoder.to_ws.bias.fill_(float("nan"))
    with folder(tmp_path / "run") as run, pytest.raises(RunError, match="not finite") as error:
        finetune(trainer, run, lambda: False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("image_interval", 0),
        ("labelled_batch", 0),
        ("lr", 0),
        ("save_steps", 0),
        ("unlabelled_batch", -1),
        ("self_training", -0.1),
        ("recolour", 1.5),
        ("part_colours", 2.0),
        ("confidence", -0.1),
        ("ramp_end", 0.05),
        ("lr", math.nan),
        ("lr_pretrained", math.inf),
        ("ema_share", math.nan),
        ("image_weight", math.nan),
        ("perceptual_weight", -1.0),
        ("colour_weight", -0.5),
        ("classifier_weight", -1.0),
        ("mix", math.nan),
        ("seed", -1),
        ("seed", 99999999999999999999),
    ],
)
def test_options_that_cannot_work(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value}"):
        FinetuneConfig(**{name: value}).for_labels(1).check()


def test_ignored_pixels_count_nothing() -> None:
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    masks = torch.full((1, 4, 4), 255, dtype=torch.uint8)
    masks[0, 0, 0] = 1
    weights = torch.ones(2)
    loss = masked_mean(part_cross_entropy(logits, masks, weights), (masks < 2).float())
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, :, 0, 0].abs().sum() > 0
    assert logits.grad.abs().sum() == logits.grad[0, :, 0, 0].abs().sum()
    assert masked_mean(torch.ones(1, 2, 2), torch.zeros(1, 2, 2)) == 0


def test_class_weights_favour_the_rare_and_keep_the_mean() -> None:
    masks = torch.zeros(1, 10, 10, dtype=torch.uint8)
    masks[0, 0, :4] = 1
    masks[0, 9] = 255
    weights = class_weights(masks, 3)
    share = torch.tensor([86 / 90, 4 / 90])
    assert weights[1] > weights[0]
    assert weights[2] == 0
    assert (weights[:2] * share).sum() == pytest.approx(1)


def test_rarity_is_halfway_from_weighted_logits_to_those_of_true_shares() -> None:
    share = torch.tensor([0.8, 0.15, 0.05, 0])
    weights = torch.tensor([0.5, 1.5, 4, 0])
    # what a network that sees nothing learns under these weights
    likeliest = (weights * share).log()
    assert torch.allclose((likeliest - 2 * rarity(weights)).softmax(0), share)
    assert rarity(torch.tensor([2.0, 1.0, 4.0])).tolist() == pytest.approx([0, 0, math.log(2) / 2])
    assert rarity(torch.tensor([0.0, 1.0, 4.0])).tolist() == pytest.approx([0, 0, math.log(2)])


def test_predictions_are_freed_of_the_weights() -> None:
    trainer = make()
    assert trainer.weights[1] > trainer.weights[0]
    assert torch.equal(trainer.segmenter().model.rarity, rarity(trainer.weights))
    trainer.step()
    assert torch.equal(trainer.segmenter().model.rarity, rarity(trainer.weights))


def test_lpips_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match="--perceptual lpips"):
        make(perceptual="lpips")


def test_lpips_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Distance(torch.nn.Module):
        def __init__(self, net: str, verbose: bool) -> None:
            super().__init__()

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a - b).abs().mean([1, 2, 3], keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Distance))
    values = make(perceptual="lpips").step()
    assert 0 < values["perceptual"] < 10


def test_perceptual_loss_is_0_for_equal_images_only() -> None:
    torch.manual_seed(0)
    loss = PerceptualLoss(NETWORK.discriminator())
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    assert loss(x, x.detach()) == 0
    other = loss(x, torch.rand(2, 3, 16, 16))
    other.backward()
    assert other > 0 and x.grad is not None and x.grad.any()
    assert all(not p.requires_grad for p in loss.parameters())


def test_perceptual_loss_is_the_mean_of_relative_distances_and_keeps_the_layout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loss = PerceptualLoss(NETWORK.discriminator())
    shapes = {8: (2, 4, 8, 8), 16: (2, 3, 16, 16), 4: (2, 5, 4, 4)}
    got, want = (
        {
            r: torch.rand(shape).contiguous(memory_format=torch.channels_last)
            for r, shape in shapes.items()
        }
        for _ in range(2)
    )
    grads: list[torch.Tensor] = []
    got[8].requires_grad_().register_hook(grads.append)
    features = iter([got, want])
    monkeypatch.setattr(loss.discriminator, "features", lambda _: next(features))
    value = loss(torch.empty(0), torch.empty(0))
    value.backward()
    scale = want[8].square().mean([1, 2, 3], keepdim=True) + 1e-6
    torch.testing.assert_close(value, ((got[8] - want[8]).square() / scale).mean())
    assert grads[0].is_contiguous(memory_format=torch.channels_last)


def test_shares_of_a_batch_make_the_batch() -> None:
    def batch(*ranks: Ranks) -> Batch:
        config = FinetuneConfig(labelled_batch=4, unlabelled_batch=2)
        batches = Batches(config, training_set(), torch.device("cpu"), *ranks)
        return batches.draw(torch.Generator().manual_seed(0))

    parts, whole = [batch(Ranks(rank, 2)) for rank in range(2)], batch()
    assert torch.equal(torch.cat([part.masks for part in parts]), whole.masks)
    labelled = torch.cat([part.images[:2] for part in parts])
    unlabelled = torch.cat([part.images[2:] for part in parts])
    assert torch.equal(torch.cat([labelled, unlabelled]), whole.images)
    assert all(torch.equal(part.random, whole.random) for part in parts)


def test_the_mean_of_shares_is_the_mean_of_the_batch() -> None:
    values, valid = torch.rand(4, 3, 5, 5), (torch.rand(4, 5, 5) < 0.4).float()
    count = valid.sum() / 2
    shares = [masked_mean(values[s], valid[s], count) for s in (slice(2), slice(2, 4))]
    torch.testing.assert_close(sum(shares) / 2, masked_mean(values, valid))


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    trainer = make(steps=6, save_steps=2)
    step = trainer.step

    def breaks(*batch: object) -> dict[str, torch.Tensor]:
        values = step(*batch)  # type: ignore[arg-type]
        if trainer.steps == 4:
            next(trainer.ema.parameters()).data.view(-1)[0] = torch.inf
        return values

    trainer.step = breaks  # type: ignore[method-assign,assignment]
    with (
        folder(tmp_path / "run") as run,
        pytest.raises(RunError, match=r"ema\.\S+ is not finite.*state-0000000002\.pt is the last"),
    ):
        finetune(trainer, run, lambda: False)
    state = run.load_state()
    assert state is not None and state["steps"] == 2


def test_a_batch_that_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="--labelled-batch 8: give a multiple of 3"):
        FinetuneConfig().for_labels(1).check()
    FinetuneConfig(labelled_batch=9, unlabelled_batch=3).for_labels(1).check()


def test_defaults_depend_on_how_many_images_are_labelled() -> None:
    one, few = (FinetuneConfig().for_labels(count) for count in (1, 5))
    many = FinetuneConfig(labelled_batch=3).for_labels(6)
    assert (one.steps, one.labelled_batch, one.unlabelled_batch) == (480, 8, 12)
    assert (few.steps, few.labelled_batch, few.unlabelled_batch) == (750, 8, 4)
    assert FinetuneConfig().for_labels(2) == few
    assert (many.steps, many.labelled_batch, many.unlabelled_batch) == (1100, 3, 4)
    assert not FinetuneConfig(unlabelled_batch=0).for_labels(6).with_unlabelled
    assert many.for_labels(1) is many


def test_unlabelled_images_are_learned_where_the_running_mean_is_sure() -> None:
    trainer = make(steps=4, self_training=0.25, self_training_from=0.5, confidence=0.6, mix=0.0)
    batch = next(trainer.batches())
    assert trainer._targets(batch)[0].equal(batch.masks)
    trainer.steps = 2
    masks, weight = (target[len(batch.masks) :] for target in trainer._targets(batch))
    sureness, ids = trainer.segmenter().probabilities(batch.plain, "fusion", flip=False).max(1)
    assert batch.change is not None
    sure = batch.change.masks((sureness >= 0.6).to(torch.uint8)) == 1
    assert 0 < sure.float().mean() < 1
    assert (masks != 255).equal(sure) and weight.equal(0.25 * sure)
    assert masks[sure].equal(batch.change.masks(ids.to(torch.uint8))[sure])


def test_of_self_training_the_weight_decides() -> None:
    def after(self_training: float, confidence: float) -> list[torch.Tensor]:
        trainer = make(
            self_training=self_training,
            self_training_from=0.0,
            confidence=confidence,
            ramp="direct",
            mix=0.0,
        )
        trainer.step()
        return weights(trainer)

    def alike(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
        # Images that count nothing are summed up too, and may turn a sum's last bit.
        return all(torch.allclose(x, y, rtol=0, atol=1e-5) for x, y in zip(a, b, strict=True))

    without, with_it, nobody_is_sure = after(0.0, 0.0), after(1.0, 0.0), after(1.0, 1.0)
    assert not alike(without, with_it)
    assert alike(without, nobody_is_sure)


def test_labelled_images_take_colours_of_unlabelled_ones() -> None:
    def batch(**options: object) -> Batch:
        return next(make(**options).batches())

    def colours(whole: float, parts: float) -> dict[str, float]:
        return {"recolour": whole, "part_colours": parts}

    plain = batch(**colours(0.0, 0.0))
    assert plain.masks.equal(batch(**colours(0.0, 0.0)).masks)
    for share in ((1.0, 0.0), (0.0, 1.0)):
        assert not plain.images[:3].equal(batch(**colours(*share)).images[:3])
    alone = [make(**colours(x, x)) for x in (0.0, 1.0)]
    for trainer in alone:
        trainer.config.unlabelled_batch = 0
    assert next(alone[0].batches()).images.equal(next(alone[1].batches()).images)


def test_parts_of_labelled_images_are_pasted_onto_unlabelled_ones() -> None:
    def batch(**options: object) -> Batch:
        trainer = make(self_training_from=0.0, confidence=1.0, **options)
        batch = next(trainer.batches())
        # it is never quite sure of anything else
        masks, weight = (target[len(batch.masks) :] for target in trainer._targets(batch))
        wanted = trainer.config.mix > 0 and trainer.config.mix_weight > 0
        assert masks.equal(batch.pasted if wanted or trainer.config.self_training else masks[:0])
        assert weight.equal(trainer.config.mix_weight * (masks != 255))
        return batch

    plain, mixed = batch(mix=0.0), batch(mix=1.0)
    assert mixed.images[:3].equal(plain.images[:3])
    pasted = mixed.pasted != 255
    assert pasted.any((1, 2)).all() and not pasted.all()
    for n, source in enumerate((0, 1)):
        here = pasted[n]
        assert mixed.images[3 + n][:, here].equal(mixed.images[source][:, here])
        assert mixed.pasted[n][here].equal(mixed.masks[source][here])
        assert mixed.images[3 + n][:, ~here].equal(plain.images[3 + n][:, ~here])
    assert (plain.pasted == 255).all()
    assert batch(mix=1.0, self_training=0.0).pasted.equal(mixed.pasted)
    assert batch(mix=1.0, self_training=0.0, mix_weight=0.0).pasted.equal(mixed.pasted)
