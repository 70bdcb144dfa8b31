"""The contract of every registered op: opcheck, forward mode, torch.compile."""

from typing import Any

import pytest
import torch
from comparison import BACKENDS, LAYOUTS
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from gpseg import ops
from gpseg.models.stylegan2 import SynthesisBlock
from gpseg.ops.registration import nothing_between
from gpseg.selftest.comparison import relative_rms
from gpseg.selftest.problems import BINOMIAL

# what the tests of this file call, op by op: arguments follow the schemas
RESAMPLING = ([2, 1], [1, 2], [2, 1, 0, 1], False, 0.5)
ACTIVATION = (1, "swish", 0.0, 1.2, 0.7)
LAYER = (2, 1, [1, 1, 1, 1], True, False, "lrelu", 0.2, 1.4, 0.9)
CONVOLUTION = ([2, 2], [1, 1])


def leaf(*size: int, layout: str = "nchw") -> Tensor:
    return LAYOUTS[layout](torch.randn(size, dtype=torch.float64)).detach().requires_grad_()


def demodulation(weight: Tensor, styles: Tensor) -> tuple[Tensor, Tensor]:
    """What the forward keeps of it."""
    w2 = weight.detach().square().sum([2, 3]).contiguous()
    return w2, (styles.detach().square() @ w2.t() + 1e-8).rsqrt()


def samples(layout: str) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments for each registered op, by name."""

    def image(*size: int) -> Tensor:
        return leaf(*size, layout=layout)

    f = ops.setup_filter(BINOMIAL)
    x, b, up = image(2, 3, 5, 4), leaf(3), image(2, 4, 10, 8)
    weight, styles = image(4, 3, 3, 3), leaf(2, 3)
    layer = (x, weight, styles, leaf(4), leaf(10, 8), f)
    bare = (x, weight, styles, None, None, None)
    affine = (1, 1, [1, 1, 1, 1], False, True, "linear", 0.0, 1.0, -1.0)
    small = image(2, 4, 3, 2)
    nothing = torch.empty(0, dtype=torch.float64)
    return {
        "upfirdn2d": [(x, f, *RESAMPLING), (x, None, *RESAMPLING)],
        "bias_act": [(x, b, *ACTIVATION), (x, None, *ACTIVATION)],
        "bias_act_backward": [
            (image(2, 3, 5, 4), x, b, *ACTIVATION),
            (image(2, 3, 5, 4), x, None, *ACTIVATION),
        ],
        "bias_act_double_backward": [
            (
                image(2, 3, 5, 4).detach(),
                b.detach(),
                x.detach(),
                x.detach(),
                b.detach(),
                *ACTIVATION,
            ),
            (None, b.detach(), x.detach(), x.detach(), b.detach(), *ACTIVATION),
        ],
        "conv2d": [
            (x, weight, *CONVOLUTION, False, [0, 0], 1),
            (small, weight, *CONVOLUTION, True, [1, 0], 1),
        ],
        "conv2d_weight_grad": [(x, small, [4, 3, 3, 3], *CONVOLUTION, 1)],
        "modulated_conv2d_act": [(*layer, True, *LAYER), (*bare, True, *affine)],
        "modulated_conv2d_act_backward": [
            (up, *layer, up.detach(), *demodulation(weight, styles), True, True, *LAYER),
            (image(2, 4, 5, 4), *bare, nothing, nothing, nothing, True, False, *affine),
        ],
    }


def registered() -> set[str]:
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("gpseg::") for name in names if name.startswith("gpseg::")}


def test_every_registered_op_is_sampled() -> None:
    assert registered() == samples("nchw").keys()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["nchw", "channels_last"])
@pytest.mark.parametrize("name", samples("nchw"))
def test_opcheck(name: str, layout: str) -> None:
    cases = samples(layout)[name]
    for arguments in cases if layout == "nchw" else cases[:1]:
        torch.library.opcheck(getattr(torch.ops.gpseg, name).default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", samples("nchw"))
def test_fake_kernels_match_the_real_strides(name: str, layout: str, backend: str) -> None:
    """Compiled code trusts the strides that fake kernels promise; of every backend, for every layout."""
    op = getattr(torch.ops.gpseg, name).default
    for arguments in samples(layout)[name]:
        with torch.no_grad(), ops.use_backend(backend):
            real = op(*arguments)
        with torch._subclasses.FakeTensorMode() as mode, torch.no_grad():
            fake = op(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments))
        pairs = [(real, fake)] if isinstance(real, Tensor) else zip(real, fake, strict=True)
        for r, k in pairs:
            assert (r.shape, r.stride(), r.dtype, r.device) == (
                k.shape,
                k.stride(),
                k.dtype,
                k.device,
            )


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", samples("nchw"))
def test_forward_mode_is_refused(name: str, requires_grad: bool) -> None:
    """A tangent at any tensor, which would be lost."""
    op = getattr(torch.ops.gpseg, name).default
    arguments = [
        a.detach().requires_grad_(requires_grad) if isinstance(a, Tensor) else a
        for a in samples("nchw")[name][0]
    ]
    refused = f"gpseg.{name} has no forward-mode derivative; use reverse mode"
    for i, a in enumerate(arguments):
        if isinstance(a, Tensor):
            with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=refused):
                op(*arguments[:i], forward_ad.make_dual(a, a.detach()), *arguments[i + 1 :])
    with forward_ad.dual_level():
        op(*arguments)


class Seen(TorchDispatchMode):
    """Names of the ops that are called within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


class Subclass(Tensor):
    pass


class Watching(TorchFunctionMode):
    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **(kwargs or {}))


class TestWhatStandsBetweenACallAndItsKernel:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_nothing_for_plain_tensors(self, dtype: torch.dtype, requires_grad: bool) -> None:
        x = torch.randn(2, 3, 4, 4, dtype=dtype, requires_grad=requires_grad)
        for t in (x, torch.nn.Parameter(x), x[:, :, 1:], x.to(memory_format=torch.channels_last)):
            assert nothing_between((t, None, 1, "relu"))
            with torch.no_grad():
                assert nothing_between((t,))

    @pytest.mark.parametrize(
        "state",
        [
            Seen(),
            Watching(),
            torch.device("cpu"),
            torch.autocast("cpu"),
            torch.inference_mode(),
            forward_ad.dual_level(),
            torch.autograd.profiler.profile(),
            torch._subclasses.FakeTensorMode(),
        ],
        ids=lambda state: type(state).__name__,
    )
    def test_a_state_that_wants_to_see_it(self, state: Any) -> None:
        x = torch.randn(3)
        with state:
            assert not nothing_between((x,))
        assert nothing_between((x,))

    @pytest.mark.parametrize(
        "x",
        [
            torch.randn(3).as_subclass(Subclass),
            torch.randn(3, device="meta"),
            torch.randn(3, dtype=torch.complex64).conj().imag,
        ],
        ids=["subclass", "meta", "negated"],
    )
    def test_a_tensor_that_is_not_plain(self, x: Tensor) -> None:
        assert not nothing_between((torch.randn(3), x))

    @pytest.mark.parametrize("transform", [torch.vmap, torch.func.grad, torch.func.functionalize])
    def test_a_transform(self, transform: Any) -> None:
        def seen(x: Tensor) -> Tensor:
            assert not nothing_between((x,))
            return x.square().sum()

        transform(seen)(torch.randn(3, 2))

    @pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
    def test_a_tracer(self) -> None:
        def seen(x: Tensor) -> Tensor:
            assert not nothing_between((x,))
            return x.square()

        torch.jit.trace(seen, (torch.randn(3),), check_trace=False)

    def test_modes_see_the_op_and_those_of_its_gradient(self) -> None:
        x = torch.randn(1, 2, 3, 3, requires_grad=True)
        with Seen() as seen:
            activated(x).sum().backward()
        assert {"gpseg::bias_act", "gpseg::bias_act_backward"} <= {*seen.names}

    def test_profiles_list_the_op(self) -> None:
        x = torch.randn(1, 2, 3, 3)
        with torch.autograd.profiler.profile() as profile:
            activated(x)
        assert "gpseg::bias_act" in {event.name for event in profile.function_events}

    def test_a_sign_that_is_yet_to_be_applied_is_applied(self) -> None:
        z = torch.randn(1, 2, 3, 3, dtype=torch.complex64)
        x = z.conj().imag
        assert x.is_neg()
        torch.testing.assert_close(activated(x), torch.tanh(-z.imag))

    def test_the_way_around_gives_the_same_to_the_bit(self) -> None:
        inputs = block_inputs(2)

        def results() -> list[Tensor]:
            y = block(*inputs)
            firsts = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
            penalty = torch.stack([g.square().sum() for g in firsts]).sum()
            return [y, *firsts, *torch.autograd.grad(penalty, inputs)]

        direct = results()
        with Watching():
            dispatched = results()
        assert all(torch.equal(a, b) for a, b in zip(direct, dispatched, strict=True))


def activated(x: Tensor) -> Tensor:
    return ops.bias_act(x, act="tanh")


def test_forward_mode_of_torch_func_is_refused() -> None:
    x = torch.randn(2, 3, 4)
    refused = pytest.raises(NotImplementedError, match="use reverse mode")
    with refused:
        torch.func.jvp(activated, (x,), (x,))
    with refused:
        torch.func.jacfwd(activated)(x)
    with refused:
        torch.func.jvp(torch.vmap(activated), (x,), (x,))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap() -> None:
    x, w = torch.randn(3, 2, 4, 5, 5), torch.randn(4, 4, 3, 3)
    torch.testing.assert_close(torch.vmap(activated)(x), activated(x))
    y = torch.vmap(lambda x: ops.conv2d_resample(x, w, padding=1))(x)
    torch.testing.assert_close(y, torch.stack([ops.conv2d_resample(i, w, padding=1) for i in x]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("op", [ops.modulated_conv2d, ops.modulated_conv2d_act])
def test_backward_of_a_vmap(op: Any) -> None:
    """Within it, a batch of styles does not say that it wants a gradient."""
    x, w = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3)
    s = torch.randn(3, 2, 4, requires_grad=True)
    (got,) = torch.autograd.grad(torch.vmap(lambda s: op(x, w, s, padding=1))(s).sin().sum(), s)
    (want,) = torch.autograd.grad(sum(op(x, w, i, padding=1).sin().sum() for i in s), s)
    torch.testing.assert_close(got, want)


class OwnJvp(torch.autograd.Function):
    """An op whose user says what its forward-mode derivative is."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return activated(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_forward(output)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return tangent * (1 - y * y)


def test_forward_mode_goes_by_a_function_of_ones_own() -> None:
    x = torch.randn(2, 3)
    got = torch.func.jvp(OwnJvp.apply, (x,), (x,))
    torch.testing.assert_close(got, torch.func.jvp(torch.tanh, (x,), (x,)))


FILTER = ops.setup_filter(BINOMIAL)


def block(
    x: Tensor, img: Tensor, weight: Tensor, styles: Tensor, bias: Tensor, noise: Tensor
) -> Tensor:
    """Two layers, colours and the upsampled image below: a synthesis block in plain calls."""
    f = FILTER
    x = ops.modulated_conv2d_act(
        x, weight, styles, bias, noise=noise, up=2, padding=1, resample_filter=f, clamp=2.0
    )
    x = ops.modulated_conv2d_act(x, weight, styles.cos(), bias, noise=noise, padding=1)
    rgb = ops.modulated_conv2d(x, weight[:3, :, :1, :1], styles.sin(), demodulate=False)
    x = ops.bias_act(ops.conv2d_resample(x, weight, f, down=2, padding=1), bias, act="swish")
    return ops.upsample2d(img, f) + rgb + ops.upsample2d(x[:, :3], f)


def block_inputs(batch: int) -> list[Tensor]:
    sizes = [(batch, 4, 4, 4), (batch, 3, 4, 4), (4, 4, 3, 3), (batch, 4), (4,), (8, 8)]
    generator = torch.Generator().manual_seed(batch)
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in sizes
    ]


@pytest.fixture
def fresh_compiler() -> None:
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_function_agrees() -> None:
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5):  # the second makes the batch dynamic
        inputs = block_inputs(batch)
        y, want = compiled(*inputs), block(*inputs)
        assert relative_rms(y, want) < 1e-9
        got = torch.autograd.grad(y.square().sum(), inputs)
        for g, wanted in zip(got, torch.autograd.grad(want.square().sum(), inputs), strict=True):
            assert relative_rms(g, wanted) < 1e-9


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_a_dynamic_batch_compiles_once() -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counting)
    for batch in (2, 3, 5, 7):
        compiled(*block_inputs(batch))
    assert len(graphs) == 1


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_synthesis_block_agrees() -> None:
    torch.manual_seed(0)
    module = SynthesisBlock(8, 6, 5, 8, 3, conv_clamp=256).double()
    for name, p in module.named_parameters():
        if "noise_strength" in name:
            torch.nn.init.constant_(p, 0.3)
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for batch in (2, 3):
        x = leaf(batch, 8, 4, 4, layout="channels_last")
        img, ws = leaf(batch, 3, 4, 4), leaf(batch, 3, 5)
        leaves = [x, img, ws, *module.parameters()]

        def run(f: Any, x: Tensor = x, img: Tensor = img, ws: Tensor = ws) -> tuple[Tensor, Tensor]:
            features, image = f(x, img, ws, noise_mode="const", dtype=torch.float64)
            return features, image

        got, want = run(compiled), run(module)
        for g, wanted in zip(got, want, strict=True):
            assert relative_rms(g, wanted) < 1e-4  # colours and styles are float32
        gradients = torch.autograd.grad(sum(t.square().sum() for t in got), leaves)
        wanted = torch.autograd.grad(sum(t.square().sum() for t in want), leaves)
        for g, w in zip(gradients, wanted, strict=True):
            assert relative_rms(g, w) < 1e-4
