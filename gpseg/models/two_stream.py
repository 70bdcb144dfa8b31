"""Two copies of one generator: the image stream rebuilds its input, the segmentation stream paints the part map.

An independent implementation of the idea in the abstract of Han et al., *Leveraging GAN Priors for Few-Shot Part
Segmentation*, ACM MM 2022 (arXiv 2207.13428):

    x ── encoder ──> w+, skips
         image stream         G_img(w+, skips)      -> x̂, features f_r      target x
         segmentation stream  G_seg(w+, skips; f_r) -> s, features h_r      target T_a(x, y)

Crossings and skips pass through projections that start at zero: before the first step both streams are the pre-trained
generator, and do the same job.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from gpseg.models.encoder import Encoder
from gpseg.models.stylegan2 import Discriminator, Generator, NetworkConfig, SynthesisNetwork
from gpseg.nn import Conv2d, ZeroProjection


def far_apart_palette(num_classes: int) -> Tensor:
    """Colours [K, 3] in −1 … 1: black, then each as far from those before as possible.

    Corners of the colour cube come first, then a grid of 5 levels, or of 7 where that has too few.
    """
    corners, grid = (
        torch.tensor(list(product(torch.linspace(-1, 1, levels).tolist(), repeat=3)))
        for levels in (2, 5 if num_classes <= 5**3 else 7)
    )
    chosen = corners[:1]
    while len(chosen) < num_classes:
        candidates = corners if len(chosen) < len(corners) else grid
        nearest = torch.cdist(candidates, chosen).amin(1)
        chosen = torch.cat([chosen, candidates[nearest.argmax()][None]])
    return chosen


@dataclass(frozen=True)
class Streams:
    """What one pass gives; the entries of a stream are None where it was not asked for.

    Args:
        reconstruction: the image stream's x̂ [N, 3, r, r], about −1 … 1.
        colours: the segmentation stream's image s [N, 3, r, r], about −1 … 1.
        logits: the classifier's [N, K, r, r].
    """

    reconstruction: Tensor | None = None
    colours: Tensor | None = None
    logits: Tensor | None = None


class PixelClassifier(nn.Module):
    """The second read-out: a light classifier on the segmentation stream's features of all resolutions.

    Args:
        channels: feature channels by resolution.
        num_classes: K.
        width: channels that each resolution is projected to.
    """

    def __init__(self, channels: Mapping[int, int], num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.projections = nn.ModuleDict(
            {str(r): Conv2d(c, width, 1, activation="lrelu") for r, c in channels.items()}
        )
        self.hidden = Conv2d(width, width, 1, activation="lrelu")
        self.out = Conv2d(width, num_classes, 1)

    def forward(self, features: Mapping[int, Tensor]) -> Tensor:
        """Logits [N, K, r, r] (float32) at the finest resolution r of features [N, channels[r], r, r]."""
        total: Tensor | None = None
        for r in sorted(features):
            x: Tensor = self.projections[str(r)](features[r])
            if total is not None:
                x = x + functional.interpolate(total, scale_factor=2.0, mode="bilinear")
            total = x
        assert total is not None
        logits: Tensor = self.out(self.hidden(total)).float()
        return logits


class TwoStream(nn.Module):
    """Encoder, image stream, segmentation stream and both read-outs.

    Args:
        generator: pre-trained; its synthesis network is copied into both streams.
        discriminator: pre-trained with it; starts the encoder's trunk.
        network: what both are built from.
        num_classes: K.
        crossing: whether the image stream's features reach the segmentation stream.
    """

    palette: Tensor
    rarity: Tensor
    """Taken off the logits of rare parts, [K], for they were weighted in training: `gpseg.training.losses.rarity`."""

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        network: NetworkConfig,
        num_classes: int,
        *,
        crossing: bool = True,
    ) -> None:
        super().__init__()
        channels = generator.synthesis.channels
        self.encoder = Encoder(discriminator, network, generator.num_ws)
        self.encoder.w_mean.copy_(generator.mapping.w_avg)
        self.image_stream = copy.deepcopy(generator.synthesis)
        self.segmentation_stream = copy.deepcopy(generator.synthesis)
        self.image_skips = _projections(channels)
        self.segmentation_skips = _projections(channels)
        self.crossings = _projections(channels) if crossing else None
        self.classifier = PixelClassifier(channels, num_classes)
        self.register_buffer("palette", far_apart_palette(num_classes))
        self.register_buffer("rarity", torch.zeros(num_classes))

    def forward(
        self,
        images: Tensor,
        *,
        segmented: int | None = None,
        reconstruct: bool = True,
        feature_grad: float = 1.0,
        dtype: torch.dtype | None = None,
    ) -> Streams:
        """Run both streams.

        Args:
            images: [N, 3, r, r], −1 … 1.
            segmented: only the first so many images go through the segmentation stream; None for all.
            reconstruct: whether the image stream's result is asked for. Without it that stream does nothing but feed what
                crosses over, and learns nothing; images that are not segmented are not looked at.
            feature_grad: share of the classifier's gradient that reaches the features it reads, 0 … 1.
            dtype: dtype of the features; None for the networks' own.

        Returns:
            Both streams' results.
        """
        if not reconstruct:
            images = images[:segmented]
        ws, skips = self.encoder(images, dtype=dtype)
        features, reconstruction = None, None
        if reconstruct:
            features, reconstruction = self._rebuilt(ws, skips, dtype)
        elif self.crossings is not None:
            with torch.no_grad():
                features, _ = self._rebuilt(ws, skips, dtype)
        if segmented == 0:
            return Streams(reconstruction)
        if segmented is not None and segmented < len(images):
            ws, skips = ws[:segmented], _first(skips, segmented)
            if features is not None and self.crossings is not None:
                features = _first(features, segmented)
        read, colours = _run(
            self.segmentation_stream,
            ws,
            self.segmentation_skips,
            skips,
            self.crossings,
            features,
            dtype=dtype,
        )
        read = {r: _scaled_gradient(x, feature_grad) for r, x in read.items()}
        return Streams(reconstruction, colours, self.classifier(read))

    def _rebuilt(
        self, ws: Tensor, skips: Mapping[int, Tensor], dtype: torch.dtype | None
    ) -> tuple[dict[int, Tensor], Tensor]:
        """The image stream's features and its image."""
        return _run(self.image_stream, ws, self.image_skips, skips, dtype=dtype)

    def counterparts(self) -> list[tuple[nn.Module, nn.Module]]:
        """Modules of the segmentation stream, but for what crosses over, each with that of the image stream."""
        return [
            (self.segmentation_stream, self.image_stream),
            (self.segmentation_skips, self.image_skips),
        ]

    def palette_logits(self, colours: Tensor, temperature: float) -> Tensor:
        """−‖s − P_k‖² / temperature: [N, K, r, r] of colours [N, 3, r, r]; the first read-out is their softmax."""
        # multiplied out: the differences themselves are K images
        product = torch.einsum("kc,nchw->nkhw", self.palette, colours)
        norms = self.palette.square().sum(1)[:, None, None]
        return (2 * product - norms - colours.square().sum(1, keepdim=True)) / temperature


def _projections(channels: Mapping[int, int]) -> nn.ModuleDict:
    return nn.ModuleDict({str(r): ZeroProjection(c, c) for r, c in channels.items()})


def _first(features: Mapping[int, Tensor], count: int) -> dict[int, Tensor]:
    """The first `count` of each batch. The gradient of a slice is NCHW; padding's keeps the layout, by fewer than none too."""
    return {r: functional.pad(x, (0,) * 7 + (count - len(x),)) for r, x in features.items()}


def _run(
    synthesis: SynthesisNetwork,
    ws: Tensor,
    skip_projections: nn.ModuleDict,
    skips: Mapping[int, Tensor],
    crossing_projections: nn.ModuleDict | None = None,
    crossed: Mapping[int, Tensor] | None = None,
    *,
    dtype: torch.dtype | None,
) -> tuple[dict[int, Tensor], Tensor]:
    inject = {r: skip_projections[str(r)](x) for r, x in skips.items()}
    if crossing_projections is not None and crossed is not None:
        inject = {r: x + crossing_projections[str(r)](crossed[r]) for r, x in inject.items()}
    return synthesis.features_and_image(ws, inject=inject, noise_mode="none", dtype=dtype)


def _scaled_gradient(x: Tensor, share: float) -> Tensor:
    if share == 1:
        return x
    return x.detach() if share == 0 else x * share + x.detach() * (1 - share)
