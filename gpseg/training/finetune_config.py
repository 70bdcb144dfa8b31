"""Options of fine-tuning."""

from dataclasses import asdict, dataclass
from typing import Literal

from gpseg.errors import InputError
from gpseg.training.checks import check_not_negative, check_positive, check_seed, check_share
from gpseg.training.device import Precision
from gpseg.training.distributed import rank_and_count
from gpseg.training.schedules import Ramp

_BY_LABELS = {
    "steps": (480, 750, 1100),
    "labelled_batch": (8, 8, 16),
    "unlabelled_batch": (12, 4, 4),
}
"""What is not given: for 1 labelled image, for 2 to 5, and for more. The more there are, the more steps they take to learn, and
the less unlabelled ones add; the first two take the same time (docs/results.md)."""


def _column(labels: int) -> int:
    return (labels > 1) + (labels > 5)


@dataclass
class FinetuneConfig:
    """Options of fine-tuning."""

    steps: int | None = None
    """Training steps. Default: 480 for 1 labelled image, 750 for up to 5, 1100 for more."""
    labelled_batch: int | None = None
    """Labelled images a step (augmented copies of the few there are), over all processes. Default: 8, or 16 for more than 5."""
    unlabelled_batch: int | None = None
    """Unlabelled images a step, over all processes; 0 leaves them out. Default: 12 for 1 labelled one, 4 for more."""
    ramp: Ramp = "cosine"
    """How the target moves from the image to the part map; direct and fixed are controls."""
    ramp_start: float = 0.1
    """Share of the steps in which the target of every image, labelled or not, is the image: both streams are one so far. The
    controls direct and fixed do without."""
    ramp_end: float = 0.2
    """Share of the steps after which the target is the part map alone."""
    lr: float = 2e-2
    """Learning rate of new layers (Adam); their weights are of unit size, see gpseg.nn."""
    lr_pretrained: float = 1.5e-2
    """Learning rate of what comes from the generator and the discriminator."""
    image_interval: int = 4
    """Once the target is the part map alone, the image stream learns only once in so many steps, which makes the others
    faster."""
    image_weight: float = 1.0
    """Weight of the image stream's losses once the streams are no longer one; 0 leaves that stream as it then is, a control."""
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
    """Whether training starts from the generator's and the discriminator's weights; without is a control that starts from
    random ones, all at the rate of new layers."""
    precision: Precision = "auto"
    """Dtype of the feature maps; auto is bf16 where the device computes in it, else fp32."""
    seed: int = 0
    """Seed of everything random but what is held out; the same seed on the same machine gives the same run."""
    log_steps: int = 25
    """Steps from one log entry to the next."""
    save_steps: int = 250
    """Steps from one saved state to the next."""

    @property
    def with_unlabelled(self) -> bool:
        """Whether unlabelled images are learned from."""
        return self.unlabelled_batch != 0

    def for_labels(self, count: int) -> "FinetuneRecipe":
        """These options, with those not given as the number of labelled images has them."""
        given = {
            name: values[_column(count)] if getattr(self, name) is None else getattr(self, name)
            for name, values in _BY_LABELS.items()
        }
        return FinetuneRecipe(**{**asdict(self), **given})


@dataclass
class FinetuneRecipe(FinetuneConfig):
    """Options of fine-tuning, all of them given."""

    steps: int
    labelled_batch: int
    unlabelled_batch: int

    def for_labels(self, count: int) -> "FinetuneRecipe":
        """These."""
        return self

    def check(self) -> None:
        """Raise InputError for values that can't work."""
        check_positive(
            self,
            "steps",
            "labelled_batch",
            "image_interval",
            "log_steps",
            "save_steps",
            "ema_share",
            "lr",
            "lr_pretrained",
        )
        check_not_negative(
            self,
            "unlabelled_batch",
            "image_weight",
            "perceptual_weight",
            "colour_weight",
            "classifier_weight",
            "self_training",
            "mix_weight",
        )
        check_share(
            self,
            "recolour",
            "part_colours",
            "confidence",
            "mix",
            "ramp_start",
            "ramp_end",
            "self_training_from",
        )
        check_seed(self)
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
