"""torch.compile: a synthesis block is one graph of registered ops, whichever backend carries them out later."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

from gpseg import backends, ops
from gpseg.models.stylegan2 import SynthesisBlock
from gpseg.selftest.comparison import relative_rms

Graphs = list[torch.fx.GraphModule]

LAYER, RESAMPLE = "gpseg.modulated_conv2d_act.default", "gpseg.upfirdn2d.default"
"""What a block consists of, as a graph names them."""


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch.compiler.reset()


def block() -> SynthesisBlock:
    """Two layers of 8 channels, the first upsampling to 8², and colours."""
    torch.manual_seed(0)
    module = SynthesisBlock(8, 8, 5, 8, 3, conv_clamp=256)
    for name, p in module.named_parameters():
        if "noise_strength" in name:
            torch.nn.init.constant_(p, 0.3)
    return module


def recorded(graphs: Graphs) -> Any:
    """A compiler that keeps the graphs it is given, forward and backward, and runs them as they are."""

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=keep, bw_compiler=keep)


def ours(graph: torch.fx.GraphModule) -> list[str]:
    """The package's ops in a graph."""
    targets = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    return [target for target in targets if target.startswith("gpseg.")]


def fake() -> FakeTensorMode:
    """Within it, new tensors have a device and no memory."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class TestWithoutAGpu:
    """Graphs for a GPU, traced with fake tensors."""

    @staticmethod
    def traced() -> torch.fx.GraphModule:
        """The graph of a block's forward, in float16 with features in channels_last."""
        graphs: Graphs = []
        module = block()
        compiled = torch.compile(module, fullgraph=True, backend=recorded(graphs))
        with fake(), torch.no_grad():  # autograd itself wants a driver
            module.to_empty(device="cuda")
            x = torch.empty(2, 8, 4, 4, device="cuda").to(memory_format=torch.channels_last)
            img, ws = torch.empty(2, 3, 4, 4, device="cuda"), torch.empty(2, 3, 5, device="cuda")
            features, image = compiled(x, img, ws, noise_mode="const", dtype=torch.float16)
        assert features.device == image.device == torch.device("cuda:0")
        assert (features.dtype, image.dtype) == (torch.float16, torch.float32)
        assert features.is_contiguous(memory_format=torch.channels_last)
        (graph,) = graphs
        return graph

    def test_a_block_is_one_graph_of_registered_ops(self) -> None:
        assert ours(self.traced()) == [LAYER, LAYER, LAYER, RESAMPLE]

    def test_tracing_asks_no_backend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def asked(*_: object) -> None:
            raise AssertionError("a backend was asked for while tracing")

        monkeypatch.setattr(backends, "_off", lambda name: None)  # as on a machine that has all
        monkeypatch.setattr(backends, "select", asked)
        code = []
        for name in (None, "triton", "cuda", "eager"):
            torch.compiler.reset()
            with ops.use_backend(name):
                code.append(self.traced().code)
        assert len(set(code)) == 1

    def test_a_backward_op_can_be_called_in_a_compiled_function(self) -> None:
        def gradients(dy: Tensor, x: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return ops.bias_act_backward(dy, x, b, 1, "lrelu", 0.2, 1.0, 0.5)

        graphs: Graphs = []
        compiled = torch.compile(gradients, fullgraph=True, backend=recorded(graphs))
        with fake():
            x, b = torch.empty(2, 8, 4, 4, device="cuda"), torch.empty(8, device="cuda")
            dx, db = compiled(x, x, b)
        assert (dx.shape, db.shape, dx.device) == (x.shape, b.shape, x.device)
        assert ours(graphs[0]) == ["gpseg.bias_act_backward.default"]


def carried_out(call: Callable[..., tuple[Tensor, Tensor]], module: SynthesisBlock) -> list[Tensor]:
    """Features, image and the gradients of inputs and parameters."""
    generator = torch.Generator().manual_seed(1)
    x, img, ws = (
        torch.randn(size, generator=generator).requires_grad_()
        for size in [(2, 8, 4, 4), (2, 3, 4, 4), (2, 3, 5)]
    )
    images = x.contiguous(memory_format=torch.channels_last)
    features, image = call(images, img, ws, noise_mode="const")
    leaves = [x, img, ws, *module.parameters()]
    loss = features.square().sum() + image.square().sum()
    return [features, image, *torch.autograd.grad(loss, leaves)]


@pytest.mark.skipif(ops.backends()["ttsem"] is not None, reason=str(ops.backends()["ttsem"]))
@pytest.mark.parametrize(
    "compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_tritons_kernels_in_a_compiled_block(compiler: str) -> None:
    module = block()
    with ops.use_backend("eager"):
        want = carried_out(module, module)
    with ops.use_backend("ttsem"):
        got = carried_out(torch.compile(module, fullgraph=True, backend=compiler), module)
    for g, w in zip(got, want, strict=True):
        assert relative_rms(g, w) < 1e-5


def test_forward_and_backward_are_a_graph_each() -> None:
    graphs: Graphs = []
    module = block()
    carried_out(torch.compile(module, fullgraph=True, backend=recorded(graphs)), module)
    forward, backward = (ours(graph) for graph in graphs)
    assert forward == [LAYER, LAYER, LAYER, RESAMPLE]
    gradient = "gpseg.modulated_conv2d_act_backward.default"
    assert sorted(backward) == [gradient, gradient, gradient, RESAMPLE]


@pytest.mark.parametrize("forced", [("eager", "cpp"), ("cpp", "eager"), ("eager", "eager")])
def test_a_compiled_pass_runs_on_what_is_forced_when_it_runs(
    forced: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not, as without the compiler, the backward on the forward's backend."""
    for name in forced:
        if (off := ops.backends()[name]) is not None:
            pytest.skip(off)
    calls: list[tuple[str, str]] = []

    def spy(name: str, function: str) -> None:
        backend = backends.get(name)
        right = getattr(backend, function)

        def recording(*args: Any) -> Any:
            calls.append((name, function))
            return right(*args)

        monkeypatch.setattr(backend, function, recording)

    for name in set(forced):
        spy(name, "bias_act")
        spy(name, "bias_act_backward")
    compiled = torch.compile(ops.bias_act, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 3, requires_grad=True)
    for _ in range(2):  # compiled anew, and from the cache
        with ops.use_backend(forced[0]):
            y = compiled(x, act="swish")
        with ops.use_backend(forced[1]):
            y.sum().backward()
    assert calls == [(forced[0], "bias_act"), (forced[1], "bias_act_backward")] * 2


def test_a_filter_can_be_made_in_a_compiled_function() -> None:
    def doubled(x: Tensor) -> Tensor:
        return ops.upsample2d(x, ops.setup_filter([1, 3, 3, 1]))

    x = torch.randn(1, 3, 4, 4)
    compiled = torch.compile(doubled, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), doubled(x))
