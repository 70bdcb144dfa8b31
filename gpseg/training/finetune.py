"""Progressive fine-tuning of a pre-trained generator in two streams; see `gpseg.models.two_stream`."""

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from tqdm import tqdm

from gpseg.data import (
    Classes,
    PairAugment,
    PairChange,
    UnlabelledImages,
    batches_ahead,
    color_parts,
    half_the_parts,
    made_ahead,
    take_colors,
)
from gpseg.errors import InputError
from gpseg.models.segmenter import TEMPERATURE, Segmenter, to_float
from gpseg.models.stylegan2 import Discriminator, Generator, NetworkConfig, ema_copy, ema_update
from gpseg.models.two_stream import TwoStream
from gpseg.training.device import Precision, choose_dtype
from gpseg.training.distributed import ALONE, Ranks, rank_and_count
from gpseg.training.losses import (
    LpipsLoss,
    PerceptualLoss,
    class_weights,
    masked_mean,
    part_cross_entropy,
)
from gpseg.training.run_folder import Interrupted, RunFolder
from gpseg.training.schedules import Ramp, interpolated_target, learning_rate, ramp
from gpseg.training.steps import (
    Means,
    check_finite,
    check_state,
    restore_optimizer,
    short_collections,
)

log = logging.getLogger(__name__)

_NAN_REMEDY = "--precision fp32 or smaller --lr and --lr-pretrained"


@dataclass
class FinetuneConfig:
    """Options of fine-tuning."""

    steps: int = 380
    """Training steps."""
    labelled_batch: int = 8
    """Labelled images a step (augmented copies of the few there are), over all processes."""
    unlabelled_batch: int = 12
    """Unlabelled images a step, over all processes; 0 leaves them out."""
    ramp: Ramp = "cosine"
    """How the target moves from the image to the part map; direct and fixed are controls."""
    ramp_start: float = 0.1
    """Share of the steps in which the target of every image, labelled or not, is the image: both streams are one so far. The
    controls direct and fixed do without."""
    ramp_end: float = 0.2
    """Share of the steps after which the target is the part map alone."""
    lr: float = 2e-2
    """Learning rate of new layers (Adam); their weights are of unit size, see gpseg.nn."""
    lr_pretrained: float = 5e-3
    """Learning rate of what comes from the generator and the discriminator."""
    perceptual: Literal["discriminator", "lpips"] = "discriminator"
    """Features of the image stream's perceptual loss: the pre-trained discriminator's, or LPIPS where that package and
    its weights are installed."""
    perceptual_weight: float = 0.2
    """Weight of the perceptual loss of the image stream."""
    colour_weight: float = 0.2
    """Weight, times the ramp's value, of the cross-entropy of the palette read-out."""
    classifier_weight: float = 1.0
    """Weight of the cross-entropy of the classifier read-out."""
    recolour: float = 0.5
    """Share of the labelled images that take the colours of an unlabelled one, 0 … 1."""
    part_colours: float = 0.25
    """Share of the labelled images about half of whose parts are shifted, each for itself, towards the colour of some pixel of
    an unlabelled one, 0 … 1."""
    self_training: float = 0.1
    """Weight of what the running mean makes of unlabelled images: where it is sure, that is learned as if it were their mask;
    0 leaves it out."""
    self_training_from: float = 0.5
    """Share of the steps after which unlabelled images, what is pasted onto them included, teach parts; before, the running
    mean would teach its first mistakes."""
    confidence: float = 0.9
    """Probability from which the running mean counts as sure, 0 … 1."""
    mix: float = 0.5
    """Share of the unlabelled images onto which half of a labelled image's parts are pasted, 0 … 1."""
    mix_weight: float = 0.5
    """Weight of what was pasted, in learning parts."""
    ema_share: float = 0.03
    """Half-life of the running mean of the weights, as a share of the steps."""
    crossing: bool = True
    """Whether the image stream's features reach the segmentation stream; without is a control."""
    pretrained: bool = True
    """Whether training starts from the generator's weights; without is a control that starts from random ones."""
    precision: Precision = "auto"
    """Dtype of the feature maps; auto is bf16 where the device computes in it, else fp32."""
    seed: int = 0
    """Seed of everything random; the same seed on the same machine gives the same run."""
    log_steps: int = 25
    """Steps from one log entry to the next."""
    save_steps: int = 250
    """Steps from one saved state to the next."""

    def check(self) -> None:
        """Raise InputError for values that can't work."""
        for name in (
            "steps",
            "labelled_batch",
            "log_steps",
            "save_steps",
            "ema_share",
            "lr",
            "lr_pretrained",
        ):
            if getattr(self, name) <= 0:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: give a number above 0"
                )
        for name in ("unlabelled_batch", "self_training", "mix_weight"):
            if getattr(self, name) < 0:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: give 0 or more"
                )
        for name in (
            "recolour",
            "part_colours",
            "confidence",
            "mix",
            "ramp_start",
            "ramp_end",
            "self_training_from",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: give a number from 0 to 1"
                )
        if self.ramp_end < self.ramp_start:
            raise InputError(
                f"--ramp-end {self.ramp_end}: give no less than --ramp-start {self.ramp_start}"
            )
        _, processes = rank_and_count()
        for name in ("labelled_batch", "unlabelled_batch"):
            if getattr(self, name) % processes:
                raise InputError(
                    f"--{name.replace('_', '-')} {getattr(self, name)}: give a multiple of {processes}, the processes"
                )


@dataclass(frozen=True)
class TrainingSet:
    """What fine-tuning learns from.

    Args:
        images: labelled, uint8 [k, 3, r, r].
        masks: uint8 [k, r, r] of class ids and the ignore index.
        unlabelled: uint8 [n, 3, r, r], in memory or not; may be empty.
        classes: the part classes.
    """

    images: Tensor
    masks: Tensor
    unlabelled: Tensor | UnlabelledImages
    classes: Classes


@dataclass(frozen=True)
class Batch:
    """What a step draws and augments: this process's share.

    Args:
        images: labelled ones first, then unlabelled ones, [n, 3, r, r] in −1 … 1.
        masks: uint8 [labelled, r, r] of class ids and the ignore index.
        plain: the unlabelled ones before they were augmented, [n − labelled, 3, r, r].
        change: what augmented them; None if there are none.
        pasted: ids of parts of labelled images that were pasted onto them afterwards, the ignore index where nothing was,
            uint8 [n − labelled, r, r].
        random: state of the random stream that all this was drawn from, afterwards.
    """

    images: Tensor
    masks: Tensor
    plain: Tensor
    change: PairChange | None
    pasted: Tensor
    random: Tensor


class Finetuner:
    """Networks, optimiser and random stream of a run, and the step that moves them.

    A batch is drawn and augmented as a whole, the same in all processes, which then take their shares of it.

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
        self.config = config
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
        self.ema = ema_copy(self.model)
        self.weights = class_weights(data.masks, data.classes.num_classes).to(device)
        self.random = torch.Generator(device).manual_seed(config.seed)
        self.augment = PairAugment().suiting(data.classes, device)
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
                "peak_lr": self.config.lr_pretrained,
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
        random = torch.Generator(self.device)
        random.set_state(self.random.get_state())
        while True:
            yield self._batch(random)

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

    def _batch(self, random: torch.Generator) -> Batch:
        data, config = self.data, self.config
        labelled = self._draw(len(data.images), config.labelled_batch, random)
        own = self.ranks.share(config.labelled_batch)
        images = to_float(data.images[labelled[own]].to(self.device))
        unlabelled = config.unlabelled_batch > 0 and len(data.unlabelled) > 0
        masks = data.masks[labelled[own]].to(self.device)
        if unlabelled and config.recolour > 0:
            images = self._recoloured(images, own, random)
        if unlabelled and config.part_colours > 0:
            images = self._with_other_parts(images, masks, own, random)
        change = self.augment.draw((len(labelled), *images.shape[1:]), random)[own]
        images, masks = change.images(images), change.masks(masks)
        plain, moved, pasted = images[:0], None, masks[:0]
        if unlabelled:
            count = config.unlabelled_batch
            own = self.ranks.share(count)
            plain = self._unlabelled(count, own, random)
            moved = self.augment.draw((count, *plain.shape[1:]), random)[own]
            others, pasted = self._pasted(moved.images(plain), images, masks, own, random)
            images = torch.cat([images, others])
        images = images.contiguous(memory_format=torch.channels_last)
        return Batch(images, masks, plain, moved, pasted, random.get_state())

    def _recoloured(self, images: Tensor, own: slice, random: torch.Generator) -> Tensor:
        """Give some of the images, this process's share of the labelled ones, the colours of unlabelled ones to some degree."""
        count = self.config.labelled_batch
        sources = self._unlabelled(count, own, random)
        chance, share = torch.rand(2, count, generator=random, device=self.device)
        share = torch.where(chance < self.config.recolour, share, 0)
        return take_colors(images, sources, share[own])

    def _with_other_parts(
        self, images: Tensor, masks: Tensor, own: slice, random: torch.Generator
    ) -> Tensor:
        """Shift the colours of some of the parts of some of the images, this process's share of the labelled ones."""
        count, classes = self.config.labelled_batch, self.data.classes.num_classes
        sources = self._unlabelled(count, own, random).flatten(2)
        chance, part, share, place = torch.rand(
            4, count, classes, generator=random, device=self.device
        )[:, own]
        share = share.masked_fill((chance[:, :1] >= self.config.part_colours) | (part >= 0.5), 0)
        place = (place * sources.shape[2]).long().unsqueeze(1).expand(-1, 3, -1)
        return color_parts(images, masks, sources.gather(2, place).transpose(1, 2), share)

    def _pasted(
        self, others: Tensor, images: Tensor, masks: Tensor, own: slice, random: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Paste half of the labelled images' parts onto some of the others, this process's share; also returns their ids."""
        config, classes = self.config, self.data.classes
        size = config.unlabelled_batch, classes.num_classes + 1
        chance, *order = torch.rand(size, generator=random, device=self.device)[own].T
        source = torch.arange(len(others), device=self.device) * len(images) // len(others)
        drawn = half_the_parts(masks[source], torch.stack(order, 1))
        drawn &= (chance < config.mix)[:, None, None]
        others = torch.where(drawn[:, None], images[source], others)
        return others, torch.where(drawn, masks[source], classes.ignore_index)

    def _unlabelled(self, count: int, own: slice, random: torch.Generator) -> Tensor:
        """Draw `count` unlabelled images, of which only this process's share is read."""
        drawn = self._draw(len(self.data.unlabelled), count, random)
        return to_float(self.data.unlabelled[drawn[own]].to(self.device))

    def _draw(self, size: int, count: int, random: torch.Generator) -> Tensor:
        """Indices of `count` images of `size`: every image comes up before one comes up again within a batch."""
        rounds = math.ceil(count / size)
        order = [torch.randperm(size, generator=random, device=self.device) for _ in range(rounds)]
        return torch.cat(order)[:count].cpu()

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Masks of the labelled images and, once they are learned from, of the unlabelled ones: what was pasted, elsewhere
        what the running mean makes of them where it is sure; and the weight of each pixel, 0 where there is no class."""
        config, classes = self.config, self.data.classes
        masks, weights = batch.masks, (batch.masks < classes.num_classes).float()
        pasted_counts = config.mix > 0 and config.mix_weight > 0
        wanted = config.self_training > 0 or pasted_counts
        if batch.change is None or not wanted or self.progress < config.self_training_from:
            return masks, weights
        own = torch.full_like(batch.pasted, classes.ignore_index)
        if config.self_training > 0:
            sureness, ids = self.segmenter().probabilities(batch.plain, "fusion").max(1)
            sure = torch.where(sureness >= config.confidence, ids, classes.ignore_index)
            own = batch.change.masks(sure.to(own.dtype))
        pasted = batch.pasted < classes.num_classes
        own_weights = config.self_training * (own < classes.num_classes).float()
        return (
            torch.cat([masks, torch.where(pasted, batch.pasted, own)]),
            torch.cat([weights, torch.where(pasted, config.mix_weight, own_weights)]),
        )

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
        streams = model(images, segmented=len(masks), feature_grad=a, dtype=self.dtype)
        reconstruction, colours, logits = streams.reconstruction, streams.colours, streams.logits
        values = {
            "image": (reconstruction - images).square().mean(),
            # every other image, labelled and unlabelled alike: it costs as much as the encoder
            "perceptual": self.perceptual(reconstruction[::2], images[::2]),
        }
        loss = values["image"] + config.perceptual_weight * values["perceptual"]
        if colours is None:
            return loss, {name: value.detach() for name, value in values.items()}
        count = self.ranks.mean(weights.sum())

        def cross_entropy(logits: Tensor) -> Tensor:
            # Weighted once more, what is rare would grow from one prediction to the next.
            by_class = (self.weights, torch.ones_like(self.weights))
            parts = zip(
                logits.tensor_split([given]), masks.tensor_split([given]), by_class, strict=True
            )
            return masked_mean(
                torch.cat([part_cross_entropy(*part) for part in parts]), weights, count
            )

        target = interpolated_target(images[: len(masks)], masks, model.palette, a)
        values["map"] = masked_mean((colours - target).square(), weights, count)
        values["classifier"] = cross_entropy(logits)
        loss = loss + values["map"] + config.classifier_weight * values["classifier"]
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
