"""Whole models as problems: everybody computes the same, and what is counted is what has to be done."""

import contextlib

import pytest
import torch

from gpseg import ops
from gpseg.models import stylegan2
from gpseg.selftest import models, problems
from gpseg.selftest.comparison import relative_rms
from gpseg.selftest.models import (
    MODELS,
    TINY,
    TOLERANCE,
    ModelContestant,
    ModelDirection,
    ModelProblem,
    model_contestants,
    model_operations,
    prepare_model,
    reference,
)
from gpseg.selftest.textbook_models import GROUPED, TEXTBOOK, PlainTraining, using
from gpseg.selftest.timing import Parts
from gpseg.training.trainer import Trainer

CPU = torch.device("cpu")
RACES = [
    pytest.param(p, d, id=f"{p.name}-{d.replace('+', '-')}") for p in TINY for d in p.directions
]


def test_every_problem_has_a_tiny_one_and_a_name_of_its_own() -> None:
    assert {p.kind for p in MODELS} == {p.kind for p in TINY}
    assert len(models.BY_NAME) == len(MODELS) + len(TINY)
    assert not models.BY_NAME.keys() & problems.BY_NAME.keys()


@pytest.mark.parametrize(("problem", "direction"), RACES)
def test_everybody_computes_the_same(problem: ModelProblem, direction: ModelDirection) -> None:
    want = reference(problem, direction, CPU)
    for contestant in model_contestants(problem, [torch.float32, torch.bfloat16]):
        if contestant.compiled:
            continue
        work = prepare_model(problem, contestant, CPU)
        got = work.results(direction)
        assert got.keys() == want.keys()
        for name, tensor in got.items():
            error = relative_rms(tensor, want[name])
            assert error <= TOLERANCE[contestant.dtype], (contestant.name, name)
        work.call(direction)()


def test_training_goes_on_after_it_was_checked() -> None:
    """The call that is timed is the trainer's own step, and R1 counts for a sixteenth."""
    problem = models.BY_NAME["pretraining-step-16"]
    own, plain = (
        prepare_model(problem, ModelContestant("x", torch.float32, operators), CPU)
        for operators in (None, TEXTBOOK)
    )
    assert isinstance(own, models._Pretraining) and isinstance(plain, models._Pretraining)
    assert isinstance(own._training, Trainer) and isinstance(plain._training, PlainTraining)
    for work in (own, plain):
        call = work.call("step")
        assert isinstance(call, Parts)
        assert [often for _, often in call.calls] == [1, 1 / 16]
        before = [p.clone() for p in work._training.generator.parameters()]
        call()
        after = work._training.generator.parameters()
        assert not all(torch.equal(b, a) for b, a in zip(before, after, strict=True))


def test_operators_are_swapped_and_back_again() -> None:
    with using(TEXTBOOK):
        assert stylegan2.ops is TEXTBOOK
        assert isinstance(stylegan2.ops.no_weight_grad(), contextlib.nullcontext)
        with using(GROUPED):
            assert stylegan2.ops is GROUPED
        assert stylegan2.ops is TEXTBOOK
    assert stylegan2.ops is ops
    with contextlib.suppress(KeyError), using(TEXTBOOK):
        raise KeyError
    assert stylegan2.ops is ops


def test_the_textbook_computes_in_nchw() -> None:
    x = torch.randn(1, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    y = TEXTBOOK.bias_act(x, act="lrelu")
    assert y.is_contiguous()
    assert relative_rms(y, ops.bias_act(x, act="lrelu")) < 1e-6


def test_operations_are_those_that_are_needed() -> None:
    """Of a generator of 16 px: its convolutions, products with styles and demodulation, and no filter."""
    problem = models.BY_NAME["generator-16"]
    convolutions = 2 * 64 * 9 * (4**2 + 4**2 + 8**2 + 8**2 + 16**2)  # 8 channels throughout
    colours = 2 * 8 * 3 * (4**2 + 8**2 + 16**2)
    styles = 2 * 8 * 8 * (1 + 8)  # one layer of the mapping, eight affine ones
    got = model_operations(problem, "forward")
    assert got == convolutions + colours + styles
    assert 2 * got < model_operations(problem, "forward+backward") <= 3 * got
