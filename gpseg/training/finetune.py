"""Progressive fine-tuning of a pre-trained generator in two streams; see `gpseg.models.two_stream`."""

import copy
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gpseg.data import batches_ahead, made_ahead
from gpseg.models.segmenter import TEMPERATURE, Segmenter
from gpseg.models.stylegan2 import Discriminator, Generator, NetworkConfig, ema_copy, ema_update
from gpseg.models.two_stream import TwoStream
from gpseg.training.batches import Batch, Batches, TrainingSet
from gpseg.training.device import choose_dtype
from gpseg.training.distributed import ALONE, Ranks
from gpseg.training.finetune_config import FinetuneConfig
from gpseg.training.losses import (
    LpipsLoss,
    PerceptualLoss,
    class_weights,
    masked_mean,
    parts_loss,
    rarity,
)
from gpseg.training.run_folder import Interrupted, RunFolder
from gpseg.training.schedules import interpolated_target, learning_rate, ramp
from gpseg.training.steps import (
    Means,
    check_finite,
    check_state,
    restore_optimizer,
    short_collections,
)

log = logging.getLogger(__name__)

_NAN_REMEDY = "--precision fp32 or smaller --lr and --lr-pretrained"


class Finetuner:
    """Networks, optimiser and random stream of a run, and the step that moves them.

    Args:
        config: the options.
        data: what to learn from.
        generator: pre-trained.
        discriminator: pre-trained with it.
        network: what both are built from.
        device: where to train.
        ranks: the processes among which a batch is shared.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        data: TrainingSet,
        generator: Generator,
        discriminator: Discriminator,
        network: NetworkConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
    ) -> None:
        self.config = config = config.for_labels(len(data.images))
        self.ranks = ranks
        self.data = data
        self.network = network
        self.dtype = choose_dtype(config.precision, device)
        self.steps = 0
        # The perceptual loss keeps the pre-trained features in the control that starts from random weights too.
        perceptual = LpipsLoss() if config.perceptual == "lpips" else PerceptualLoss(discriminator)
        self.perceptual = perceptual.to(device)
        if not config.pretrained:
            generator, discriminator = network.generator(), network.discriminator()
        self.model = TwoStream(
            generator, discriminator, network, data.classes.num_classes, crossing=config.crossing
        ).to(device)
        self.weights = class_weights(data.masks, data.classes.num_classes).to(device)
        self.model.rarity.copy_(rarity(self.weights))
        self.ema = ema_copy(self.model)
        self._teacher = self.segmenter()  # kept: to make one walks all its modules
        self.random = torch.Generator(device).manual_seed(config.seed)
        self.draws = Batches(config, data, device, ranks)
        self.optimizer = torch.optim.Adam(
            self._parameter_groups(), betas=(0.9, 0.99), eps=1e-8, fused=True
        )
        self.device = device

    def _parameter_groups(self) -> list[dict[str, Any]]:
        model = self.model
        pretrained: list[nn.Module] = [
            model.encoder.trunk,
            model.image_stream,
            model.segmentation_stream,
        ]
        slow = {id(p) for part in pretrained for p in part.parameters()}
        return [
            {
                "params": [p for p in model.parameters() if id(p) in slow],
                "peak_lr": self.config.lr_pretrained if self.config.pretrained else self.config.lr,
            },
            {
                "params": [p for p in model.parameters() if id(p) not in slow],
                "peak_lr": self.config.lr,
            },
        ]

    @property
    def _common_steps(self) -> int:
        """How many steps both streams are one for; only the image stream is run in them."""
        config = self.config
        return 0 if config.ramp in ("direct", "fixed") else round(config.ramp_start * config.steps)

    @property
    def progress(self) -> float:
        """Share of the steps done, 0 … 1."""
        return self.steps / self.config.steps

    def segmenter(self) -> Segmenter:
        """The running mean of the networks, ready to predict."""
        return Segmenter(self.ema, self.network, self.data.classes, dtype=self.dtype)

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.random.get_state(),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.ema.load_state_dict(state["ema"])
        restore_optimizer(self.optimizer, state["optimizer"])
        self.random.set_state(state["random"])
        self.steps = state["steps"]

    def batches(self) -> Iterator[Batch]:
        """Draw and augment batches without end, from where the last step left the random stream.

        They may be made ahead, in another thread: the stream moves on when `step` takes one.
        """
        return self.draws.after(self.random.get_state())

    def step(self, batch: Batch | None = None) -> dict[str, Tensor]:
        """Train on one batch; returns the losses and the ramp's value, scalars by name.

        Args:
            batch: one of `batches`; None for the next.
        """
        batch = batch or next(self.batches())
        self.random.set_state(batch.random)
        config = self.config
        if self.steps == self._common_steps > 0:
            self._part_streams()
        a = ramp(config.ramp, self.progress, start=config.ramp_start, end=config.ramp_end)
        masks = weights = batch.masks[:0]
        if self.steps >= self._common_steps:
            masks, weights = self._targets(batch)
        loss, values = self._losses(batch.images, masks, weights, len(batch.masks), a)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * learning_rate((self.steps + 1) / (config.steps + 1))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.ranks.mean_([p.grad for p in self.model.parameters() if p.grad is not None])
        self.optimizer.step()
        self.steps += 1
        half_life = min(config.ema_share * config.steps, 0.1 * self.steps)
        ema_update(self.ema, self.model, 0.5 ** (1 / max(half_life, 1e-8)))
        return {**values, "loss": loss.detach(), "a": torch.tensor(a, device=self.device)}

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        probabilities = partial(self._teacher.probabilities, readout="fusion", flip=False)
        return self.draws.targets(batch, self.progress, probabilities)

    def _part_streams(self) -> None:
        """Let the segmentation stream be what the image stream has become; its optimiser's state too."""
        for model in (self.model, self.ema):
            for ours, theirs in model.counterparts():
                ours.load_state_dict(theirs.state_dict())
        state = self.optimizer.state
        for ours, theirs in self.model.counterparts():
            for own, other in zip(ours.parameters(), theirs.parameters(), strict=True):
                state[own] = copy.deepcopy(state[other])

    def _losses(
        self, images: Tensor, masks: Tensor, weights: Tensor, given: int, a: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and its terms, of masks whose pixels have weights; the first `given` masks are the user's, and without any
        the streams are one."""
        config, model = self.config, self.model
        due = a < 1 or self.steps % config.image_interval == 0
        rebuilt = len(masks) == 0 or (config.image_weight > 0 and due)
        streams = model(
            images,
            segmented=len(masks),
            reconstruct=rebuilt,
            feature_grad=a,
            dtype=self.dtype,
        )
        reconstruction, colours, logits = streams.reconstruction, streams.colours, streams.logits
        loss, values = torch.zeros((), device=self.device), {}
        if rebuilt:
            values["image"] = (reconstruction - images).square().mean()
            # every other image, labelled and unlabelled alike: it costs as much as the encoder
            values["perceptual"] = self.perceptual(reconstruction[::2], images[::2])
            loss = values["image"] + config.perceptual_weight * values["perceptual"]
        if colours is None:
            return loss, {name: value.detach() for name, value in values.items()}
        count = self.ranks.mean(weights.sum())
        cross_entropy = partial(
            parts_loss,
            masks=masks,
            weights=weights,
            class_weights=self.weights,
            given=given,
            count=count,
        )
        target = interpolated_target(images[: len(masks)], masks, model.palette, a)
        values["map"] = masked_mean((colours - target).square(), weights, count)
        values["classifier"] = cross_entropy(logits)
        loss = (
            config.image_weight * loss
            + values["map"]
            + config.classifier_weight * values["classifier"]
        )
        if a > 0:
            palette_logits = model.palette_logits(colours, TEMPERATURE)
            values["colour"] = cross_entropy(palette_logits)
            loss = loss + a * config.colour_weight * values["colour"]
        return loss, {name: value.detach() for name, value in values.items()}


def finetune(
    trainer: Finetuner,
    folder: RunFolder,
    stop_requested: Callable[[], bool],
    validate: Callable[[Segmenter], dict[str, float]] | None = None,
) -> None:
    """Run a trainer to its last step, logging and saving its state on the way.

    Args:
        trainer: where to start from.
        folder: where logs and states go.
        stop_requested: tells whether to stop early.
        validate: measures a segmenter; called whenever a state is saved, in the first process.

    Raises:
        RunError: a loss isn't finite, or the disk is full.
        Interrupted: a stop was requested; the state is saved.
    """
    config, ranks = trainer.config, trainer.ranks
    means = Means()
    ahead = batches_ahead(trainer.data.unlabelled)
    with (
        short_collections(),
        tqdm(
            total=config.steps,
            initial=trainer.steps,
            unit="step",
            mininterval=1.0,
            disable=not ranks.first,
        ) as bar,
        made_ahead(trainer.batches(), ahead) as batches,
    ):
        started, begun_at = time.monotonic(), trainer.steps
        while trainer.steps < config.steps:
            means.add(trainer.step(next(batches)))
            bar.update()
            stopping, last = ranks.any(stop_requested()), trainer.steps == config.steps
            saving = last or trainer.steps % config.save_steps == 0
            if stopping or last or trainer.steps % config.log_steps == 0:
                values = means.take(ranks)
                check_finite(values, folder, _NAN_REMEDY)
                values["s_per_step"] = (time.monotonic() - started) / (trainer.steps - begun_at)
                if validate is not None and saving and ranks.first:
                    values |= validate(trainer.segmenter())
                folder.log(trainer.steps, values)
                bar.set_postfix_str(f"loss {values['loss']:.3f}  a {values['a']:.2f}")
            if stopping or saving:
                state = trainer.state_dict()
                check_state(state, folder, _NAN_REMEDY)
                ranks.check_equal([*trainer.model.state_dict().values()], "networks")
                folder.save_state(trainer.steps, state)
                ranks.wait()
            if stopping and not last:
                raise Interrupted(folder.path)
