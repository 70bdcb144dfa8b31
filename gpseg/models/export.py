"""Networks as graphs that run without their Python code: programs of torch.export, and ONNX.

A graph takes batches of any size, computes in float32 and holds the weights. It is made with gpseg's operators, and either
keeps them, which is as fast as the network, gives no gradients and needs gpseg where it runs, or is composed of torch's
own, which needs torch alone, or as ONNX any runtime.
"""

import copy
import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import gpseg
from gpseg import ops
from gpseg.atomic import replacing
from gpseg.errors import InputError
from gpseg.models.checkpoint import GENERATOR_STAGE, SEGMENTER_STAGE
from gpseg.models.segmenter import Segmenter, checked_readout
from gpseg.models.stylegan2 import Generator

ONNX_OPSET = 18
"""Version of ONNX's operators: those that torch's exporter writes itself, with no conversion after it."""

METADATA_FILE = "gpseg.json"
"""Among a .pt2 file's extra files: the metadata as one JSON object."""


_DYNAMIC = ({0: Dim("batch")},)
"""Of the one input of every graph."""


@dataclass(frozen=True)
class Graph:
    """A network as a graph.

    Args:
        program: the graph with its weights, on the CPU; one tensor in, one out.
        output: name of what comes out.
        metadata: what is to be known of it: "stage", "gpseg" (version) and "resolution", and for a segmenter "classes" (as
            in classes.json) and "palette", both JSON, and "readout".
    """

    program: ExportedProgram
    output: str
    metadata: Mapping[str, str]

    @property
    def needs_gpseg(self) -> bool:
        """Whether gpseg's operators are in it."""
        targets = [node.target for node in self.program.graph.nodes]
        return any(getattr(target, "namespace", None) == "gpseg" for target in targets)

    def without_gpseg(self) -> "Graph":
        """The same, composed of torch's operators alone, as the eager backend composes gpseg's."""
        if not self.needs_gpseg:
            return self
        with torch.no_grad():
            return replace(self, program=self.program.run_decompositions(ops.decompositions()))

    def save_pt2(self, path: Path) -> None:
        """Write a file for `torch.export.load`, atomically.

        Raises:
            RunError: the disk is full.
        """
        for node in self.program.graph.nodes:
            node.meta.pop("stack_trace", None)  # paths of this machine
        content = io.BytesIO()
        files = {METADATA_FILE: json.dumps(dict(self.metadata))}
        with warnings.catch_warnings():
            # Of weights that are laid out as their convolutions read them: a matter for other devices than the CPU.
            warnings.filterwarnings("ignore", "No complete tensor found")
            torch.export.save(self.program, content, extra_files=files)
        with replacing(path) as temporary:
            temporary.write_bytes(content.getvalue())

    def save_onnx(self, path: Path) -> None:
        """Write an ONNX model, atomically; the metadata becomes its properties.

        Raises:
            InputError: onnx or onnxscript is not installed.
            RunError: the disk is full.
        """
        try:
            import onnx
            import onnxscript  # noqa: F401  torch's exporter is built on it
        except ImportError as error:
            raise InputError(f"ONNX: {error}; pip install gpseg[onnx]") from error
        exported = torch.onnx.export(
            self.without_gpseg().program,
            opset_version=ONNX_OPSET,
            output_names=[self.output],
            dynamic_shapes=_DYNAMIC,
            verbose=False,
        )
        assert exported is not None
        model = exported.model_proto
        for node in model.graph.node:
            del node.metadata_props[:]  # stack traces, with paths of this machine
        onnx.helper.set_model_props(model, dict(self.metadata))
        onnx.checker.check_model(model)
        with replacing(path) as temporary:
            temporary.write_bytes(model.SerializeToString())


class _Images(nn.Module):
    def __init__(self, generator: Generator, truncation_psi: float) -> None:
        super().__init__()
        self.generator = copy.deepcopy(generator).requires_grad_(False)
        self.truncation_psi = truncation_psi

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.generator(
            z, truncation_psi=self.truncation_psi, noise_mode="const", dtype=torch.float32
        )
        return images


class _Probabilities(nn.Module):
    def __init__(self, segmenter: Segmenter, readout: str) -> None:
        super().__init__()
        self.model = segmenter.model  # so that its weights are this module's
        self.segmenter = Segmenter(self.model, segmenter.network, segmenter.classes, readout)

    def forward(self, images: Tensor) -> Tensor:
        return self.segmenter.probabilities(images)


def export_generator(
    generator: Generator, truncation_psi: float = 1.0, *, strict: bool = False
) -> Graph:
    """A generator as a graph, from latents "z" to "images", with its own constant noise.

    Args:
        generator: the generator, on the CPU.
        truncation_psi: 1 for all the variety it has, towards 0 for images nearer to its mean; fixed in the graph.
        strict: let TorchDynamo read the Python code, instead of running it; either way gives the same graph.

    Returns:
        The graph: z [N, z_dim] float32, from N(0, 1), to images [N, img_channels, r, r] float32, about −1 … 1.
    """
    return _graph(
        _Images(generator, truncation_psi),
        torch.zeros(2, generator.z_dim),
        "images",
        strict,
        stage=GENERATOR_STAGE,
        resolution=generator.img_resolution,
        truncation_psi=truncation_psi,
    )


def export_segmenter(
    segmenter: Segmenter, readout: str | None = None, *, strict: bool = False
) -> Graph:
    """A segmenter as a graph, from "images" to "probabilities".

    Scaling the pixels, both streams, the read-out and its softmax are in it. Not in it: making the image a square of
    the segmenter's resolution before (as `gpseg.data.fit_square` does), and taking the likeliest class after.

    Args:
        segmenter: the segmenter, on the CPU.
        readout: one of `READOUTS`; None for the segmenter's default.
        strict: as in `export_generator`.

    Returns:
        The graph: images [N, 3, r, r] uint8 to probabilities [N, K, r, r] float32, which sum to 1 over K.

    Raises:
        InputError: there is no such read-out.
    """
    readout = checked_readout(readout or segmenter.readout)
    r = segmenter.resolution
    return _graph(
        _Probabilities(segmenter, readout),
        torch.zeros(2, 3, r, r, dtype=torch.uint8),
        "probabilities",
        strict,
        stage=SEGMENTER_STAGE,
        resolution=r,
        classes=json.dumps(segmenter.classes.to_json()),
        palette=json.dumps(segmenter.model.palette.tolist()),
        readout=readout,
    )


def _graph(module: nn.Module, example: Tensor, output: str, strict: bool, **facts: Any) -> Graph:
    with torch.no_grad():
        program = torch.export.export(
            module.eval(), (example,), dynamic_shapes=_DYNAMIC, strict=strict
        )
    metadata = {"gpseg": gpseg.__version__} | {name: str(fact) for name, fact in facts.items()}
    return Graph(program, output, metadata)
