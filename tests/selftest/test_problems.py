"""The list of named problems, the two compositions of them, and the work they stand for."""

import math

import pytest
import torch

from gpseg import ops
from gpseg.selftest import grouped, parts, textbook, work
from gpseg.selftest.comparison import DIRECTIONS, Reference, derivatives, relative_rms
from gpseg.selftest.problems import (
    BY_NAME,
    FAMILIES,
    LARGE,
    LAYERS,
    NAMED,
    ODD,
    PARTS,
    SMALL,
    by_name,
)
from gpseg.selftest.timing import serving_backends

MODULATED = [p for p in (*SMALL, *ODD) if hasattr(grouped, p.op)]


def test_names_are_unique_and_ops_exist() -> None:
    problems = (*SMALL, *ODD, *NAMED, *LARGE, *LAYERS)
    assert len(BY_NAME) == len(problems) + len(PARTS)
    assert all(p.op in ops.__all__ for p in problems)
    assert all(hasattr(parts, p.op) and not hasattr(ops, p.op) for p in PARTS)
    assert by_name("layer-up-64").sizes["x"] == (4, 128, 32, 32)


def test_layers_have_the_published_channels() -> None:
    assert by_name("layer-1024-batch-8").sizes["weight"] == (32, 32, 3, 3)
    assert by_name("layer-up-256-batch-16").sizes["x"] == (16, 256, 128, 128)
    assert by_name("layer-up-64-batch-8").sizes["weight"] == (512, 512, 3, 3)


def test_the_last_sample_of_a_large_problem_lies_beyond_int32() -> None:
    for problem in LARGE:
        n, *rest = problem.sizes["x"]
        assert (n - 1) * math.prod(rest) >= 2**31


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("problem", MODULATED, ids=lambda p: p.name)
def test_grouped_convolution_is_the_same_operator(problem, direction: str) -> None:
    tensors, order = problem.tensors(torch.float64), DIRECTIONS[direction]
    got = derivatives(problem, grouped, tensors, order)
    for name, want in derivatives(problem, textbook, tensors, order).items():
        assert relative_rms(got[name], want) < 1e-6, name  # norms are summed in float32


def test_sizes_without_computing() -> None:
    assert work.output_size(by_name("layer-up-256-batch-8")) == (8, 128, 256, 256)
    assert work.output_size(by_name("conv-down-64")) == (4, 128, 32, 32)


def test_a_part_is_what_the_layer_does_after_its_convolution() -> None:
    """On every backend that is on, and as the textbook has it."""
    part = next(p for p in PARTS if p.name == "epilogue-up-64")
    tensors = part.tensors(torch.float64)
    small = {k: t[:1, :, :9, :9] if k == "x" else t for k, t in tensors.items()}
    small |= {"noise": small["noise"][:8, :8], "demodulation": small["demodulation"][:1]}
    want = part.call(textbook, small)
    assert want.shape == (1, 64, 8, 8)
    for name in serving_backends():
        with ops.use_backend(name):
            assert relative_rms(part.call(parts, small), want) < 1e-9, name


def test_families_have_the_size_and_batch_asked_for() -> None:
    for name, family in FAMILIES.items():
        problem = family(32, 2)
        n, _, height, width = work.output_size(problem)
        scale = {"upsample2d": 2, "downsample2d": 0.5}.get(name, 1)
        assert (n, height, width) == (2, 32 * scale, 32 * scale), name


def test_elements_at_a_kink_carry_no_gradient() -> None:
    problem = by_name("lrelu")
    reference = Reference(problem, torch.bfloat16)
    y = reference.answers(0)["y"]
    limit = 3e-2 * y.square().mean().sqrt()
    close = (y.abs() < limit) | ((y.abs() - 0.9).abs() < limit)
    assert close.any()
    assert torch.equal(reference.dy == 0, close)


def test_work_of_a_filter_is_the_same_in_every_direction() -> None:
    fir = by_name("downsample2d-256")
    x, y = 64 * 256**2, 64 * 128**2
    for direction in ("forward", "backward", "double_backward"):
        assert work.bytes_moved(fir, torch.float32, direction) == 4 * (x + y)
        assert work.arithmetic(fir, direction) == 2 * 16 * y
    up = by_name("upsample2d-256")
    assert work.arithmetic(up, "forward") == 2 * 4 * work.output_size(up).numel()


def test_work_of_a_layer() -> None:
    layer = by_name("layer-up-64")  # x [4, 128, 32, 32], weight [64, 128, 3, 3], noise [64, 64]
    x, y = 4 * 128 * 32 * 32, 4 * 64 * 64 * 64
    others = 64 * 128 * 9 + 4 * 128 + 64 + 64 * 64
    assert work.bytes_moved(layer, torch.bfloat16, "forward") == 2 * (x + y + others)
    assert work.bytes_moved(layer, torch.float32, "forward+backward") == 4 * (
        2 * y + 3 * (x + others)
    )
    products = 4 * 32 * 32 * 64 * 128 * 9
    assert work.operations(layer, "forward") == 2 * products
    assert work.operations(layer, "forward+backward") == 6 * products


def test_work_of_a_strided_convolution_is_at_its_output() -> None:
    products = 4 * 32 * 32 * 128 * 64 * 9
    assert work.operations(by_name("conv-down-64"), "forward") == 2 * products
    assert work.operations(by_name("upsample2d-256"), "forward") is None
