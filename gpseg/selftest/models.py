"""The one list of named problems of whole models, who does them, and the work itself."""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import flop_counter

from gpseg import ops
from gpseg.data import DRAWN_CLASSES
from gpseg.models.segmenter import Segmenter
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.models.two_stream import TwoStream
from gpseg.selftest.textbook_models import GROUPED, TEXTBOOK, PlainTraining, using
from gpseg.selftest.timing import Call, Parts, serving_backends
from gpseg.training.batches import TrainingSet
from gpseg.training.device import Precision
from gpseg.training.finetune import Finetuner
from gpseg.training.finetune_config import FinetuneConfig
from gpseg.training.pretrain_config import PretrainConfig
from gpseg.training.trainer import Trainer

ModelDirection = Literal["forward", "forward+backward", "step"]
Kind = Literal[
    "generator",
    "generator step",
    "discriminator step",
    "r1 step",
    "pre-training",
    "fine-tuning",
    "prediction",
]


@dataclass(frozen=True)
class ModelProblem:
    """Work of a whole model.

    Args:
        name: as tests, tables and documentation call it.
        kind: what is done.
        resolution: side of the images.
        batch: images at once.
        channel_base, channel_max, z_dim, mapping_layers: as `NetworkConfig` has them; z_dim is w_dim too.
        directions: what can be asked for.
    """

    name: str
    kind: Kind
    resolution: int
    batch: int
    channel_base: int
    channel_max: int = 96
    z_dim: int = 128
    mapping_layers: int = 4
    directions: tuple[ModelDirection, ...] = ("step",)

    def network(self) -> NetworkConfig:
        """What the networks are built from."""
        return NetworkConfig(
            img_resolution=self.resolution,
            z_dim=self.z_dim,
            w_dim=self.z_dim,
            channel_base=self.channel_base,
            channel_max=self.channel_max,
            mapping_layers=self.mapping_layers,
        )


MODELS = (
    ModelProblem(
        "generator-256",
        "generator",
        256,
        1,
        16384,
        512,
        512,
        8,
        directions=("forward", "forward+backward"),
    ),
    ModelProblem("generator-step-64", "generator step", 64, 16, 2048),
    ModelProblem("discriminator-step-64", "discriminator step", 64, 16, 2048),
    ModelProblem("r1-step-64", "r1 step", 64, 16, 2048),
    ModelProblem("pretraining-step-64", "pre-training", 64, 16, 2048),
    ModelProblem("finetuning-step-64", "fine-tuning", 64, 16, 2048),
    ModelProblem("prediction-64", "prediction", 64, 1, 2048, directions=("forward",)),
    ModelProblem("prediction-256", "prediction", 256, 1, 8192, directions=("forward",)),
)
"""What someone waits for: at the published width for the generator, else as the commands have it by default. Of
pre-training a step is one of the generator, one of the discriminator and a sixteenth of one on R1."""

TINY = (
    ModelProblem(
        "generator-16", "generator", 16, 1, 128, 8, 8, 1, directions=("forward", "forward+backward")
    ),
    ModelProblem("generator-step-16", "generator step", 16, 4, 128, 8, 8, 1),
    ModelProblem("discriminator-step-16", "discriminator step", 16, 4, 128, 8, 8, 1),
    ModelProblem("r1-step-16", "r1 step", 16, 4, 128, 8, 8, 1),
    ModelProblem("pretraining-step-16", "pre-training", 16, 4, 128, 8, 8, 1),
    ModelProblem("finetuning-step-16", "fine-tuning", 16, 4, 128, 8, 8, 1),
    ModelProblem("prediction-16", "prediction", 16, 1, 128, 8, 8, 1, directions=("forward",)),
)
"""The same, small enough to test in all combinations."""

BY_NAME = {p.name: p for p in (*MODELS, *TINY)}


@dataclass(frozen=True)
class ModelContestant:
    """One way of doing a problem of a whole model.

    Args:
        name: in tables.
        dtype: of the features.
        operators: what stands for `gpseg.ops` in the networks, whose training is then `PlainTraining`; None for gpseg as
            it is.
        backend: forced for `gpseg.ops`; None for none.
        compiled: through torch.compile.
    """

    name: str
    dtype: torch.dtype
    operators: ModuleType | None = None
    backend: str | None = None
    compiled: bool = False

    @contextlib.contextmanager
    def forced(self) -> Iterator[None]:
        """Have the networks use these operators or this backend."""
        with using(self.operators or ops), ops.use_backend(self.backend):
            yield


def model_contestants(
    problem: ModelProblem, dtypes: Sequence[torch.dtype] = (torch.float32,)
) -> list[ModelContestant]:
    """Every reasonable way of doing it: the textbook, which the others are compared with, the same compiled, with grouped
    convolutions, and gpseg with every backend that serves by itself, all in float32; and gpseg in the other types.

    Call `torch.compiler.reset()` between problems.
    """
    single = torch.float32
    own = serving_backends()
    return [
        ModelContestant("textbook", single, TEXTBOOK),
        # torch.compile has no second derivative, which is all that R1 consists of
        *(
            []
            if problem.kind == "r1 step"
            else [ModelContestant("compiled", single, TEXTBOOK, compiled=True)]
        ),
        ModelContestant("grouped", single, GROUPED),
        *(ModelContestant(name, single, backend=name) for name in own),
        *(
            ModelContestant(name, dtype, backend=name)
            for dtype in dtypes
            if dtype != single
            for name in own[:1]
        ),
    ]


TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3, torch.bfloat16: 0.2}
"""Relative root-mean-square error that results and gradients of a whole model may have against the textbook with features
in float64, by the features' type. What lies before and after the features is float32 for all; and where rounding puts
single elements on the other side of a kink, the slope there is another one."""


class Work(Protocol):
    """A problem set up for a contestant."""

    def call(self, direction: ModelDirection) -> Call:
        """Does the work once."""

    def results(self, direction: ModelDirection) -> dict[str, Tensor]:
        """What the work gives for inputs and random numbers that are the same for everybody."""


def prepare_model(problem: ModelProblem, contestant: ModelContestant, device: torch.device) -> Work:
    """Set the problem up: networks with the same weights for everybody, and what they are given."""
    torch.manual_seed(0)
    return _WORKS[problem.kind](problem, contestant, device)


def reference(
    problem: ModelProblem, direction: ModelDirection, device: torch.device
) -> dict[str, Tensor]:
    """The results of the textbook with features in float64, on a device, as each kind draws numbers of its own."""
    exact = ModelContestant("reference", torch.float64, TEXTBOOK)
    return prepare_model(problem, exact, device).results(direction)


def _gradient(parameters: Sequence[Tensor]) -> Tensor:
    """All gradients in one vector."""
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    )


def _precision(dtype: torch.dtype) -> Precision:
    return "bf16" if dtype == torch.bfloat16 else "fp32"


def _audible(module: nn.Module) -> None:
    """Noise counts from the first step on."""
    for name, parameter in module.named_parameters():
        if name.endswith("noise_strength"):
            nn.init.constant_(parameter, 0.1)


class _Generating:
    def __init__(
        self, problem: ModelProblem, contestant: ModelContestant, device: torch.device
    ) -> None:
        self._contestant = contestant
        self._generator = problem.network().generator(contestant.dtype).to(device)
        _audible(self._generator)
        self._z = torch.randn(problem.batch, problem.z_dim).to(device)
        self._dy = torch.randn(problem.batch, 3, problem.resolution, problem.resolution).to(device)
        if contestant.compiled:
            self._generator.compile(dynamic=False)

    def _forward(self) -> Tensor:
        with torch.no_grad(), self._contestant.forced():
            images: Tensor = self._generator(self._z)
        return images

    def _both(self) -> tuple[Tensor, ...]:
        with self._contestant.forced():
            images = self._generator(self._z)
            return images, *torch.autograd.grad(images, [*self._generator.parameters()], self._dy)

    def call(self, direction: ModelDirection) -> Call:
        return self._forward if direction == "forward" else self._both

    def results(self, direction: ModelDirection) -> dict[str, Tensor]:
        torch.manual_seed(1)
        if direction == "forward":
            return {"images": self._forward()}
        images, *gradients = self._both()
        return {
            "images": images.detach(),
            "gradient": torch.cat([g.flatten() for g in gradients]),
        }


class _Pretraining:
    """Steps of `Trainer` or of `PlainTraining`."""

    def __init__(
        self, problem: ModelProblem, contestant: ModelContestant, device: torch.device
    ) -> None:
        self._kind = problem.kind
        self._contestant = contestant
        config = PretrainConfig(
            Path(),
            resolution=problem.resolution,
            batch=problem.batch,
            channel_base=problem.channel_base,
            channel_max=problem.channel_max,
            z_dim=problem.z_dim,
            mapping_layers=problem.mapping_layers,
            # a matter of the whole step, which draws where styles change
            style_mixing=0.9 if problem.kind == "pre-training" else 0.0,
            precision=_precision(contestant.dtype),
        )
        self._training: Trainer | PlainTraining
        if contestant.operators is None:
            self._training = Trainer(config, config.network(), device)
        else:
            self._training = PlainTraining(
                config, config.network(), contestant.dtype, device, contestant.compiled
            )
        _audible(self._training.generator)
        size = (problem.batch, 3, problem.resolution, problem.resolution)
        self._images = torch.randint(256, size, dtype=torch.uint8)
        # Smooth, so that samples differ in more than noise, of which a minibatch's deviation would consist; and the
        # fakes pale, as of two of a kind a new discriminator's gradients would all but cancel.
        coarse = torch.rand(2, problem.batch, 3, 4, 4).mul(2).sub(1)
        reals, fakes = (functional.interpolate(t, size[2:], mode="bicubic") for t in coarse)
        self._reals, self._fakes = reals.to(device), (fakes / 4).to(device)

    def _generator_step(self) -> Tensor:
        training = self._training
        if isinstance(training, Trainer):
            return training._generator_step()[1]
        return training.generator_step()

    def _discriminator_step(self, fakes: Tensor | None) -> Tensor:
        training = self._training
        if isinstance(training, Trainer):
            given = self._fakes if fakes is None else fakes
            return training._discriminator_step(given, self._reals)["loss_d"]
        return training.discriminator_step(self._reals, fakes)

    def _r1_step(self) -> Tensor:
        training = self._training
        if isinstance(training, Trainer):
            return training._r1_step(self._reals)
        return training.r1_step(self._reals)

    def _step_without_r1(self) -> None:
        training = self._training
        if isinstance(training, Trainer):
            training.steps = 1  # one that has no R1
            training.step(self._images)
        else:
            training.generator_step()
            training.discriminator_step(self._reals)
            training.average()

    def _within(self, step: Callable[[], object]) -> Call:
        def call() -> None:
            with self._contestant.forced():
                step()

        return call

    def call(self, direction: ModelDirection) -> Call:
        interval = self._training.config.r1_interval
        steps: dict[str, Callable[[], Call]] = {
            "generator step": lambda: self._within(self._generator_step),
            "discriminator step": lambda: self._within(lambda: self._discriminator_step(None)),
            "r1 step": lambda: self._within(self._r1_step),
            "pre-training": lambda: Parts(
                [
                    (self._within(self._step_without_r1), 1.0),
                    (self._within(self._r1_step), 1 / interval),
                ]
            ),
        }
        return steps[self._kind]()

    def necessary(self) -> Call:
        """The step without what it need not do: the discriminator is given its fakes."""
        given = self._within(lambda: self._discriminator_step(self._fakes))
        if self._kind == "discriminator step":
            return given
        if self._kind == "pre-training":
            interval = self._training.config.r1_interval
            generator, r1 = self._within(self._generator_step), self._within(self._r1_step)
            return Parts([(generator, 1.0), (given, 1.0), (r1, 1 / interval)])
        return self.call("step")

    def results(self, direction: ModelDirection) -> dict[str, Tensor]:
        """Losses and gradients of each step by itself, for given fakes, without augmentation and mixing."""
        training = self._training
        steps: dict[str, tuple[Call, nn.Module]] = {
            "generator step": (self._generator_step, training.generator),
            "discriminator step": (
                lambda: self._discriminator_step(self._fakes),
                training.discriminator,
            ),
            "r1 step": (self._r1_step, training.discriminator),
        }
        if self._kind != "pre-training":
            steps = {self._kind: steps[self._kind]}
        results: dict[str, Tensor] = {}
        config = training.config
        training.config = replace(config, augment="none", style_mixing=0.0)
        for name, (step, model) in steps.items():
            before = copy.deepcopy(training.discriminator.state_dict())
            torch.manual_seed(1)
            training.random.manual_seed(1)
            training.sampling.manual_seed(1)
            with self._contestant.forced():
                loss = step()
            assert isinstance(loss, Tensor)
            results[f"loss of the {name}"] = loss
            results[f"gradient of the {name}"] = _gradient([*model.parameters()])
            training.discriminator.load_state_dict(before)
        training.config = config
        return results


class _Finetuning:
    _AT = 300
    """A step past the ramp: the target is the part map alone."""

    def __init__(
        self, problem: ModelProblem, contestant: ModelContestant, device: torch.device
    ) -> None:
        self._contestant = contestant
        network, classes = problem.network(), DRAWN_CLASSES
        config = FinetuneConfig(
            labelled_batch=problem.batch,
            unlabelled_batch=problem.batch // 4,
            image_interval=1,  # whichever step it is, both streams learn
            self_training=0,  # whose masks, and so the work, would depend on what a contestant rounds to
            mix=0,
            precision=_precision(contestant.dtype),
        )
        size = (problem.batch, 3, problem.resolution, problem.resolution)
        images, unlabelled = (torch.randint(256, size, dtype=torch.uint8) for _ in range(2))
        masks = torch.randint(classes.num_classes, (size[0], *size[2:]), dtype=torch.uint8)
        self._trainer = Finetuner(
            config,
            TrainingSet(images, masks, unlabelled, classes),
            network.generator(),
            network.discriminator(),
            network,
            device,
        )
        self._trainer.dtype = contestant.dtype
        if contestant.operators is not None:
            self._trainer.optimizer = torch.optim.Adam(self._trainer.optimizer.param_groups)
        if contestant.compiled:
            self._trainer.model.compile(dynamic=False)
            self._trainer.perceptual.compile(dynamic=False)

    def _step(self) -> dict[str, Tensor]:
        self._trainer.steps = self._AT
        with self._contestant.forced():
            return self._trainer.step()

    def call(self, direction: ModelDirection) -> Call:
        return self._step

    def results(self, direction: ModelDirection) -> dict[str, Tensor]:
        torch.manual_seed(1)
        self._trainer.random.manual_seed(1)
        loss = self._step()["loss"]
        return {"loss": loss, "gradient": _gradient([*self._trainer.model.parameters()])}


class _Predicting:
    def __init__(
        self, problem: ModelProblem, contestant: ModelContestant, device: torch.device
    ) -> None:
        self._contestant = contestant
        network, classes = problem.network(), DRAWN_CLASSES
        model = TwoStream(
            network.generator(), network.discriminator(), network, classes.num_classes
        )
        if contestant.compiled:
            model.compile(dynamic=False)
        self._segmenter = Segmenter(model.to(device), network, classes, dtype=contestant.dtype)
        size = (problem.batch, 3, problem.resolution, problem.resolution)
        self._images = torch.randint(256, size, dtype=torch.uint8)

    def _predict(self) -> Tensor:
        with self._contestant.forced():
            return self._segmenter.probabilities(self._images, flip=False)

    def call(self, direction: ModelDirection) -> Call:
        return self._predict

    def results(self, direction: ModelDirection) -> dict[str, Tensor]:
        return {"probabilities": self._predict()}


_WORKS: Mapping[str, Callable[[ModelProblem, ModelContestant, torch.device], Work]] = {
    "generator": _Generating,
    "generator step": _Pretraining,
    "discriminator step": _Pretraining,
    "r1 step": _Pretraining,
    "pre-training": _Pretraining,
    "fine-tuning": _Finetuning,
    "prediction": _Predicting,
}


@functools.cache
def model_operations(problem: ModelProblem, direction: ModelDirection) -> float:
    """Operations of the convolutions and matrix products, a multiply-add being two, counted while the textbook runs once.

    Resampling filters, which are convolutions there, are left out, as is what the textbook's step does in vain.
    """
    textbook = ModelContestant("textbook", torch.float32, TEXTBOOK)
    work = prepare_model(problem, textbook, torch.device("cpu"))
    call = work.necessary() if isinstance(work, _Pretraining) else work.call(direction)

    def counted(call: Call) -> float:
        with flop_counter.FlopCounterMode(display=False, custom_mapping=_COUNTS) as counter:
            call()
        return float(counter.get_total_flops())

    return call.total(counted) if isinstance(call, Parts) else counted(call)


def _is_filter(weight: Tensor, groups: int) -> bool:
    return groups > 1 and groups == weight.shape[0] and weight.shape[1] == 1


def _convolution(x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> int:
    if _is_filter(weight, rest[6]):
        return 0
    count: int = flop_counter.conv_flop(x, weight, *rest, **options)
    return count


def _convolution_backward(dy: Tensor, x: Tensor, weight: Tensor, *rest: Any, **options: Any) -> int:
    if _is_filter(weight, rest[6]):
        return 0
    count: int = flop_counter.conv_backward_flop(dy, x, weight, *rest, **options)
    return count


# As flop_counter has it: they are given tensors, not sizes.
vars(_convolution)["_get_raw"] = vars(_convolution_backward)["_get_raw"] = True
_COUNTS = {
    torch.ops.aten.convolution: _convolution,
    torch.ops.aten.convolution_backward: _convolution_backward,
}
