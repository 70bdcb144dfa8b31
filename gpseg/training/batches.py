"""What a step of fine-tuning draws, and the masks that it learns from: the user's, and those of unlabelled images."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gpseg.data import (
    Classes,
    PairAugment,
    PairChange,
    UnlabelledImages,
    color_parts,
    half_the_parts,
    take_colors,
)
from gpseg.models.segmenter import to_float
from gpseg.training.distributed import ALONE, Ranks
from gpseg.training.finetune_config import FinetuneConfig


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


class Batches:
    """Draws batches, and says what is learned of them; whatever network learns.

    A batch is drawn and augmented as a whole, the same in all processes, which then take their shares of it.

    Args:
        config: the options.
        data: what to learn from.
        device: where batches go.
        ranks: the processes among which a batch is shared.
        augment: how to augment; None for a strong augmentation that suits most classes of images.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        data: TrainingSet,
        device: torch.device,
        ranks: Ranks = ALONE,
        augment: PairAugment | None = None,
    ) -> None:
        self.config = config.for_labels(len(data.images))
        self.data = data
        self.device = device
        self.ranks = ranks
        self.augment = augment or PairAugment().suiting(data.classes, device)

    def after(self, state: Tensor) -> Iterator[Batch]:
        """Draw batches without end.

        Args:
            state: of the random stream to draw from.
        """
        random = torch.Generator(self.device)
        random.set_state(state)
        while True:
            yield self.draw(random)

    def draw(self, random: torch.Generator) -> Batch:
        """Draw and augment a batch; all processes from the same state of the stream, which moves on.

        Args:
            random: on the device.
        """
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

    def targets(
        self, batch: Batch, progress: float, probabilities: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Masks to learn: of the labelled images and, once they are learned from, of the unlabelled ones: what was pasted,
        elsewhere what the running mean makes of them where it is sure.

        Args:
            batch: what was drawn.
            progress: share of the steps done, 0 … 1.
            probabilities: what the running mean makes of images [n, 3, r, r] in −1 … 1, [n, K, r, r].

        Returns:
            Masks uint8 [n, r, r] of the first n images of the batch, and the weight of each of their pixels, 0 where there is
            no class.
        """
        config, classes = self.config, self.data.classes
        masks, weights = batch.masks, (batch.masks < classes.num_classes).float()
        pasted_counts = config.mix > 0 and config.mix_weight > 0
        wanted = config.self_training > 0 or pasted_counts
        if batch.change is None or not wanted or progress < config.self_training_from:
            return masks, weights
        own = torch.full_like(batch.pasted, classes.ignore_index)
        if config.self_training > 0:
            sureness, ids = probabilities(batch.plain).max(1)
            sure = torch.where(sureness >= config.confidence, ids, classes.ignore_index)
            own = batch.change.masks(sure.to(own.dtype))
        pasted = batch.pasted < classes.num_classes
        own_weights = config.self_training * (own < classes.num_classes).float()
        return (
            torch.cat([masks, torch.where(pasted, batch.pasted, own)]),
            torch.cat([weights, torch.where(pasted, config.mix_weight, own_weights)]),
        )
