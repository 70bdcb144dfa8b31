"""What the rivals' trainings have in common: one loop, and what it is to learn masks from few labelled images."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gpseg.data import PairAugment
from gpseg.errors import InputError, RunError
from gpseg.models.segmenter import to_float
from gpseg.models.stylegan2 import ema_copy, ema_update
from gpseg.training.batches import Batches, TrainingSet
from gpseg.training.finetune_config import FinetuneConfig
from gpseg.training.losses import class_weights, parts_loss, rarity

WEIGHT_DECAY = 0.01
EMA_HALF_LIFE = 20  # steps
TRUNK_LR = 5e-3
"""Learning rate of a pre-trained trunk, whose weights are of unit size whatever their fan-in (see `gpseg.nn`): relative to them
it is far below that of other layers. Fine-tuning takes the same with up to 5 labelled images."""

Model = TypeVar("Model", bound=nn.Module)
Network = TypeVar("Network", bound="MaskNetwork")


class MaskNetwork(nn.Module):
    """A network whose `forward` maps images [N, 3, r, r] of -1..1 to logits [N, K, r, r], float32."""

    dtype = torch.float32
    """Of the feature maps."""
    rarity = torch.zeros(())
    """Taken off the logits at prediction, [K, 1, 1]: what `gpseg.training.losses.rarity` gives for the loss's weights."""

    def logits_of(self, images: Tensor) -> Tensor:
        """Logits [N, K, r, r] of images [N, 3, r, r] in -1..1, computed in `dtype`."""
        x = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits: Tensor = self(x)
        return logits

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Class probabilities [N, K, r, r] of images [N, 3, r, r], uint8 or floating in -1..1, in evaluation mode."""
        images = images.to(next(self.parameters()).device)
        images = images if images.is_floating_point() else to_float(images)
        return (self.eval().logits_of(images) - self.rarity).softmax(1)


def require_resolution(images: Tensor, resolution: int) -> None:
    """Refuse images that the networks are not made for.

    Args:
        images: [N, 3, H, W].
        resolution: side of the images that the networks take.

    Raises:
        InputError: they have another size.
    """
    height, width = images.shape[2:]
    if (height, width) != (resolution, resolution):
        raise InputError(
            f"images of {width}x{height} px, networks for {resolution} px: read the images at {resolution} px"
        )


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let a seed decide what is drawn from torch's own streams in the block, and leave them as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def fit(
    model: Model,
    rates: list[tuple[nn.Module, float]],
    backward: Callable[[Model, float], Tensor],
    *,
    steps: int,
    name: str,
) -> Model:
    """Train by AdamW, the rates falling by a cosine.

    Args:
        model: what to train, on its device; left at its last step.
        rates: parts of the model that are trained, and their learning rates at the start.
        backward: adds a batch's gradients to the model's parameters, and returns its loss, a scalar; takes the running mean
            of the model and the share of the steps done.
        steps: batches to take.
        name: whose training it is, for the progress bar and for errors.

    Returns:
        The running mean of the model's weights over the last steps.

    Raises:
        RunError: the loss isn't finite.
    """
    ema = ema_copy(model)
    groups = [{"params": [*part.parameters()], "peak_lr": rate} for part, rate in rates]
    optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=WEIGHT_DECAY, fused=True)
    model.train()
    with tqdm(range(steps), desc=name, unit="step", mininterval=1.0) as bar:
        for step in bar:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * (0.5 + 0.5 * math.cos(math.pi * step / steps))
            optimizer.zero_grad(set_to_none=True)
            loss = backward(ema, step / steps)
            optimizer.step()
            ema_update(ema, model, 0.5 ** (1 / min(EMA_HALF_LIFE, 0.1 * (step + 1))))
            if step % 20 == 0 or step == steps - 1:
                value = loss.item()
                bar.set_postfix_str(f"loss {value:.3f}")
                if not math.isfinite(value):
                    raise RunError(f"the {name}'s loss is {value} at step {step}; use fp32")
    return ema


def fit_masks(
    network: Network,
    rates: list[tuple[nn.Module, float]],
    data: TrainingSet,
    *,
    steps: int,
    batch: int,
    augment: PairAugment | None,
    as_ours: FinetuneConfig | None,
    seed: int,
    name: str,
) -> Network:
    """Train a network on labelled images, alone or as ours; the arguments are those of `fit` and of `train_unet`."""
    device = next(network.parameters()).device
    weights = class_weights(data.masks, data.classes.num_classes).to(device)
    network.rarity = rarity(weights)[:, None, None]
    random = torch.Generator(device).manual_seed(seed)
    if as_ours is None:
        as_ours = FinetuneConfig(unlabelled_batch=0)
    batches = Batches(replace(as_ours, labelled_batch=batch), data, device, augment=augment)

    def backward(ema: Network, progress: float) -> Tensor:
        drawn = batches.draw(random)
        masks, counts = batches.targets(drawn, progress, ema.probabilities)
        logits = network.logits_of(drawn.images[: len(masks)])
        loss = parts_loss(logits, masks, counts, weights, len(drawn.masks))
        loss.backward()
        return loss.detach()

    return fit(network, rates, backward, steps=steps, name=name)
