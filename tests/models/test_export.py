"""Exported networks against eager: with gpseg's operators, without them, and as ONNX; and in fresh processes."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

import gpseg
from gpseg import ops
from gpseg.data import Classes, PartClass
from gpseg.errors import InputError
from gpseg.models.export import (
    METADATA_FILE,
    ONNX_OPSET,
    Graph,
    export_generator,
    export_segmenter,
)
from gpseg.models.segmenter import Segmenter
from gpseg.models.stylegan2 import NetworkConfig
from gpseg.models.two_stream import TwoStream

NETWORK = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
CLASSES = Classes(tuple(PartClass(i, f"part {i}", (i, 0, 0)) for i in range(3)))
PSI = 0.7
NAMES = ("generator", "segmenter")

# Of another runtime's float32; 2e-6 is usual.
ONNX_TOLERANCE = {"rtol": 1e-4, "atol": 2e-5}

torch.manual_seed(0)
GENERATOR = NETWORK.generator()
GENERATOR.mapping.w_avg.normal_()
for name, weight in GENERATOR.named_parameters():
    if name.endswith("noise_strength"):
        weight.data.normal_()
SEGMENTER = Segmenter(TwoStream(GENERATOR, NETWORK.discriminator(), NETWORK, 3), NETWORK, CLASSES)
for weight in SEGMENTER.model.parameters():
    if not weight.any():
        weight.normal_()

EAGER: dict[str, Callable[[Tensor], Tensor]] = {
    "generator": lambda z: GENERATOR(z, truncation_psi=PSI, noise_mode="const"),
    "segmenter": SEGMENTER.probabilities,
}


def inputs(name: str, n: int) -> Tensor:
    if name == "generator":
        return torch.randn(n, NETWORK.z_dim)
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8)


def export(name: str, strict: bool = False) -> Graph:
    if name == "generator":
        return export_generator(GENERATOR, PSI, strict=strict)
    return export_segmenter(SEGMENTER, strict=strict)


@pytest.fixture(scope="module")
def graphs() -> dict[str, Graph]:
    return {name: export(name) for name in NAMES}


@pytest.fixture(scope="module")
def plain(graphs: dict[str, Graph]) -> dict[str, Graph]:
    return {name: graph.without_gpseg() for name, graph in graphs.items()}


@pytest.mark.parametrize(
    ("name", "strict"), [("generator", False), ("segmenter", False), ("generator", True)]
)
def test_with_operators(graphs: dict[str, Graph], name: str, strict: bool) -> None:
    graph = export(name, strict=True) if strict else graphs[name]
    assert graph.needs_gpseg
    run = graph.program.module()
    for n in (1, 3, 0):
        x = inputs(name, n)
        torch.testing.assert_close(run(x), EAGER[name](x))


@pytest.mark.parametrize("name", NAMES)
def test_without_operators(plain: dict[str, Graph], name: str) -> None:
    assert not plain[name].needs_gpseg
    run = plain[name].program.module()
    for n in (1, 3, 0):
        x = inputs(name, n)
        with ops.use_backend("eager"):
            torch.testing.assert_close(run(x), EAGER[name](x))


def test_gradients_come_from_the_plain_graph_alone(
    graphs: dict[str, Graph], plain: dict[str, Graph]
) -> None:
    z = inputs("generator", 2).requires_grad_()
    (expected,) = torch.autograd.grad(EAGER["generator"](z).square().sum(), z)
    (got,) = torch.autograd.grad(plain["generator"].program.module()(z).square().sum(), z)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * expected.abs().max())
    with pytest.raises(RuntimeError, match="exported for inference"):
        graphs["generator"].program.module()(z).sum().backward()


def test_a_graph_leaves_the_network_as_it_was(graphs: dict[str, Graph]) -> None:
    assert all(weight.requires_grad for weight in GENERATOR.parameters())


def test_readouts_and_features_in_half_precision() -> None:
    x = inputs("segmenter", 2)
    half = Segmenter(SEGMENTER.model, NETWORK, CLASSES, dtype=torch.bfloat16)
    run = export_segmenter(half, "palette").program.module()
    torch.testing.assert_close(run(x), SEGMENTER.probabilities(x, "palette"))
    with pytest.raises(InputError, match="palette, classifier"):
        export_segmenter(SEGMENTER, "nearest")


@pytest.mark.parametrize("name", NAMES)
def test_onnx(plain: dict[str, Graph], tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.onnx"
    plain[name].save_onnx(path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(used.domain, used.version) for used in model.opset_import] == [("", ONNX_OPSET)]
    assert {entry.key: entry.value for entry in model.metadata_props} == plain[name].metadata
    assert [file.name for file in tmp_path.iterdir()] == ["x.onnx"]
    assert str(Path(gpseg.__file__).parent).encode() not in path.read_bytes()

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, given.name) == {
        "generator": ("z", "images"),
        "segmenter": ("images", "probabilities"),
    }[name]
    assert taken.shape[0] == given.shape[0] == "batch"
    for n in (1, 3):
        x = inputs(name, n)
        (y,) = session.run(None, {taken.name: x.numpy()})
        with torch.no_grad(), ops.use_backend("eager"):
            torch.testing.assert_close(torch.from_numpy(y), EAGER[name](x), **ONNX_TOLERANCE)


def test_what_a_segmenter_s_graph_says_of_itself(plain: dict[str, Graph]) -> None:
    metadata = plain["segmenter"].metadata
    assert Classes.from_json(json.loads(metadata["classes"])) == CLASSES
    assert json.loads(metadata["palette"]) == SEGMENTER.model.palette.tolist()
    facts = {"stage": "segmenter", "resolution": "16", "readout": "fusion"}
    assert facts.items() | {("gpseg", gpseg.__version__)} <= metadata.items()


WITHOUT_GPSEG = """
import json, sys
sys.modules["gpseg"] = None
"""
WITH_GPSEG = """
import json, sys
import gpseg.ops
"""
RUN = f"""
import torch
for name in sys.argv[1:]:
    x, y = torch.load(f"{{name}}.pt")
    files = {{"{METADATA_FILE}": ""}}
    program = torch.export.load(f"{{name}}.pt2", extra_files=files)
    assert json.loads(files["{METADATA_FILE}"])["resolution"] == "16"
    torch.testing.assert_close(program.module()(x), y, rtol=1e-4, atol=2e-5)
"""


@pytest.mark.parametrize(("kept", "names"), [(False, NAMES), (True, ["generator"])])
def test_pt2_in_a_fresh_process(
    graphs: dict[str, Graph],
    plain: dict[str, Graph],
    tmp_path: Path,
    kept: bool,
    names: Sequence[str],
) -> None:
    for name in names:
        (graphs if kept else plain)[name].save_pt2(tmp_path / f"{name}.pt2")
        assert (
            str(Path(gpseg.__file__).parent).encode() not in (tmp_path / f"{name}.pt2").read_bytes()
        )
        x = inputs(name, 3)
        with torch.no_grad():
            torch.save((x, EAGER[name](x)), tmp_path / f"{name}.pt")
    done = subprocess.run(
        [sys.executable, "-c", (WITH_GPSEG if kept else WITHOUT_GPSEG) + RUN, *names],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(gpseg.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
