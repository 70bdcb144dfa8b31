"""The budgets of the CUDA and Triton kernels hold, and a kernel that gets worse is found."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import roofline
from benchmarks.kernels import (
    budgets,
    cases,
    comparison,
    counts,
    resources,
    tables,
    triton_counts,
    triton_resources,
)
from benchmarks.kernels.cases import Images
from benchmarks.kernels.counts import Counts, Line
from benchmarks.kernels.resources import Kernel, Resources, UnavailableError, Usage
from gpseg.backends import ttsem
from gpseg.backends.triton import TritonBackend, launch
from tests.emulated_triton import emulator
from tests.simt import build

Measured = dict[str, dict[Kernel, Resources]]

SWEEP = "_ZN5gpseg4cuda45_GLOBAL__N__1a2f7b83_12_demod_act_cu_db98c2ec16demod_act_kernelIfLi4EEEvv"

USAGE = f"""
Resource usage:
 Common:
  GLOBAL:0
 Function {SWEEP}:
  REG:40 STACK:8 SHARED:1664 LOCAL:0 CONSTANT[2]:12 CONSTANT[0]:696 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

ELF = f"""
.nv.info
	<0x1>
	Attribute:	EIATTR_REGCOUNT
	Format:	EIFMT_SVAL
	Value:	function: {SWEEP}(0x6)	register count: 40
.nv.info.{SWEEP}
	<0x9>
	Attribute:	EIATTR_MAX_THREADS
	Format:	EIFMT_SVAL
	Value:	0x80 0x2 0x1
"""

SASS = f"""
	.section	.text.{SWEEP},"ax",@progbits
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0180*/              @!P0 LDG.E.EF.128 R4, desc[UR4][R2.64] ;
        /*0190*/                   LDG.E.CONSTANT R0, desc[UR4][R6.64] ;
        /*01a0*/               @P0 LDGSTS.E.BYPASS.128 [R5], desc[UR4][R8.64] ;
        /*01b0*/                   LDGDEPBAR ;
        /*01c0*/                   LDSM.16.M88.4 R4, [R5] ;
        /*01d0*/                   HMMA.16816.F32 R4, R8, R12, R4 ;
        /*01e0*/                   STL [R1], R4 ;
        /*01f0*/                   STG.E.128.STRONG.GPU desc[UR4][R2.64], R4 ;
"""


class TestParsing:
    def test_resource_usage(self) -> None:
        assert resources.usages(USAGE) == {SWEEP: Usage(40, 8, 1664, 0)}

    def test_launch_bounds(self) -> None:
        assert resources.launch_bounds(ELF) == {SWEEP: 256}

    def test_instructions(self) -> None:
        counted = resources.instructions(SASS)[SWEEP]
        assert counted == {
            "LDC": 1,
            "LDG.E.EF.128": 1,
            "LDG.E.CONSTANT": 1,
            "LDGSTS.E.BYPASS.128": 1,
            "LDGDEPBAR": 1,
            "LDSM.16.M88.4": 1,
            "HMMA.16816.F32": 1,
            "STL": 1,
            "STG.E.128.STRONG.GPU": 1,
        }

    @pytest.mark.parametrize(
        ("demangled", "kernel"),
        [
            (
                "void gpseg::cuda::(anonymous namespace)::demod_act_kernel<__half, 8, (gpseg::cuda::Family)0,"
                " (gpseg::cuda::Walk)2>(__half const*, gpseg::cuda::Sweep)",
                "demod_act float16 straight across_pixels vectors",
            ),
            (
                "void gpseg::cuda::upfirdn2d_kernel<gpseg::cuda::FirShape<double, gpseg::cuda::Fir{2, 1, 4, false},"
                " (gpseg::cuda::Access)1>, (gpseg::cuda::Finish)2>(gpseg::cuda::FirProblem<gpseg::cuda::FirShape<double,"
                " gpseg::cuda::Fir{2, 1, 4, false}, (gpseg::cuda::Access)1>::Element>)",
                "upfirdn2d float64 up4 channels curved",
            ),
            (
                "void gpseg::cuda::fused_conv_kernel<__nv_bfloat16, 128, 64, true>(gpseg::cuda::ConvView<__nv_bfloat16>)",
                "fused_conv bfloat16 128×64 scaled",
            ),
            (
                "void gpseg::cuda::upfirdn2d_generic_kernel<(gpseg::cuda::Finish)0, float>(gpseg::cuda::AnyFir)",
                "upfirdn2d_generic float32 plain",
            ),
            (
                "gpseg::cuda::fused_conv_product_kernel(float const*, float*, long, int)",
                "fused_conv_product",
            ),
        ],
    )
    def test_names(self, demangled: str, kernel: str) -> None:
        assert str(resources.kernel_of(demangled)) == kernel

    def test_what_is_no_kernel(self) -> None:
        with pytest.raises(ValueError, match="is not a kernel"):
            resources.kernel_of("gpseg::cuda::shape_of(gpseg::Images)")


KERNEL = Kernel("demod_act", "float16", "straight vectors")
GOOD = Resources(
    registers=42,
    stack=0,
    spills=0,
    shared=0,
    dynamic=0,
    threads=256,
    loads=4,
    stores=4,
    copies=0,
    ldmatrix=0,
    mma=0,
    mma_family="",
    blocks=5,
    occupancy=0.625,
)
PRODUCT = Kernel("triton modulated_conv_fwd", "float16", "channels_last fused_conv 3×3")
ON_TENSOR_CORES = replace(GOOD, mma=4, mma_family="HGMMA", dynamic=200_000, blocks=None)
COUNTED = Counts("demod_act", "float16", "NCHW", 1.02, Line("a.cu:1", 1.0), None)


def table(**changed: Any) -> budgets.Budgets:
    return {
        "limits": {"bytes": 1.15, "sectors": 1.1, "wavefronts": 1.1},
        "cuda": {str(KERNEL): {"sm_90": budgets.budget_of(GOOD)}},
        "triton": {str(PRODUCT): {"sm_90": budgets.budget_of(ON_TENSOR_CORES)}},
        "spilling": [],
        "other_mma": [],
        "exceptions": [],
        **changed,
    }


def resource_misses(**worse: Any) -> list[str]:
    measured = {"sm_90": {KERNEL: replace(GOOD, **worse)}}
    return [*budgets.resource_misses(table(), "cuda", measured)]


def product_misses(budget: budgets.Budgets, **changed: Any) -> list[str]:
    measured = {"sm_90": {PRODUCT: replace(ON_TENSOR_CORES, **changed)}}
    return [*budgets.resource_misses(budget, "triton", measured)]


class TestComparison:
    def test_good_is_no_miss(self) -> None:
        assert resource_misses() == []
        assert resource_misses(registers=48) == []  # no more of them are handed out than for 42
        assert [*budgets.count_misses(table(), "cuda", [COUNTED])] == []

    @pytest.mark.parametrize(
        ("worse", "told"),
        [
            ({"registers": 49}, "49 registers, allowed 48"),
            ({"spills": 1}, "1 spills, allowed 0"),
            ({"stack": 8}, "8 bytes of local memory, allowed 0"),
            ({"loads": 3}, "loads 3, at least 4"),
            ({"stores": 0}, "stores 0, at least 4"),
            ({"blocks": 4}, "blocks 4, at least 5"),
            ({"dynamic": 232_449}, "232449 bytes of shared memory, there are 232448"),
        ],
    )
    def test_worse_resources(self, worse: dict[str, int], told: str) -> None:
        assert resource_misses(**worse) == [f"{KERNEL}, sm_90: {told}"]

    def test_no_budget_and_no_kernel(self) -> None:
        other = Kernel("other")
        found = [*budgets.resource_misses(table(), "cuda", {"sm_90": {other: GOOD}})]
        assert found == [
            "other, sm_90: has no budget",
            f"{KERNEL}: has a budget but is not there",
        ]

    def test_promised_tensor_core_instructions(self) -> None:
        assert product_misses(table()) == []
        told = f"{PRODUCT}, sm_90: "
        older: dict[str, Any] = {"mma_family": "HMMA"}
        assert product_misses(table(), **older) == [f"{told}uses HMMA, promised HGMMA"]
        # even where the table was written so
        none: dict[str, Any] = {"mma": 0, "mma_family": ""}
        written = budgets.updated(
            table(), "triton", {"sm_90": {PRODUCT: replace(ON_TENSOR_CORES, **none)}}
        )
        assert product_misses(written, **none) == [f"{told}uses no mma, promised HGMMA"]

    def test_excused_tensor_core_instructions(self) -> None:
        listed = {"kernel": str(PRODUCT), "architecture": "sm_90", "family": "HMMA", "why": "so"}
        excused = table(other_mma=[listed])
        assert product_misses(excused, mma_family="HMMA") == []
        assert product_misses(excused) == [f"{PRODUCT}, sm_90: is listed with HMMA but uses HGMMA"]
        [miss] = product_misses(excused, mma=4, mma_family="UTCHMMA")
        assert miss.endswith("uses UTCHMMA, promised HGMMA")

    @pytest.mark.parametrize(
        ("worse", "told"),
        [
            ({"bytes": 1.16}, "bytes ÷ ideal is 1.16, allowed 1.15"),
            (
                {"sectors": Line("a.cu:7", 1.2)},
                "sectors ÷ ideal is 1.2 at a.cu:7, allowed 1.1",
            ),
            (
                {"wavefronts": Line("a.cu:9", 2.0)},
                "wavefronts ÷ ideal is 2.0 at a.cu:9, allowed 1.1",
            ),
        ],
    )
    def test_worse_counts(self, worse: dict[str, Any], told: str) -> None:
        found = [*budgets.count_misses(table(), "cuda", [replace(COUNTED, **worse)])]
        assert found == [f"demod_act float16 NCHW: {told}"]

    def test_exceptions(self) -> None:
        listed = {"op": COUNTED.name, "what": "bytes", "ratio": 1.3, "why": "because"}
        excused = table(exceptions=[listed])
        assert [*budgets.count_misses(excused, "cuda", [replace(COUNTED, bytes=1.3)])] == []
        assert [*budgets.count_misses(excused, "cuda", [replace(COUNTED, bytes=1.31)])] == [
            f"{COUNTED.name}: bytes ÷ ideal is 1.31, allowed 1.3"
        ]
        assert [*budgets.count_misses(excused, "cuda", [COUNTED])] == [
            f"{COUNTED.name}: bytes is listed as an exception but is 1.02"
        ]
        assert [*budgets.count_misses(excused, "cuda", [])] == [
            f"{COUNTED.name}: bytes is listed as an exception but not counted"
        ]

    def test_written_anew(self, tmp_path: Path) -> None:
        listed = {"op": COUNTED.name, "what": "bytes", "ratio": 1.3, "why": "because"}
        before = table(exceptions=[listed])
        measured = {"sm_90": {KERNEL: replace(GOOD, registers=60)}}
        after = budgets.updated(before, "cuda", measured)
        after = budgets.recounted(after, [replace(COUNTED, bytes=1.4)])
        budgets.write(after, tmp_path / "budgets.json")
        assert budgets.read(tmp_path / "budgets.json") == after
        assert after["limits"] == before["limits"]
        assert after["exceptions"] == [{**listed, "ratio": 1.4}]
        assert after["cuda"][str(KERNEL)]["sm_90"]["registers"] == 64
        assert after["triton"] == before["triton"]


@pytest.fixture(scope="module")
def measured() -> Measured:
    try:
        module = resources.built()
    except UnavailableError as error:
        pytest.skip(str(error))
    nvcc = resources.loaded(module).build_info()["nvcc"]
    if nvcc != budgets.read()["compilers"]["cuda"]:
        pytest.skip(f"budgets are for another nvcc than {nvcc}")
    return resources.measure(module)


@pytest.fixture(scope="module")
def counted() -> list[Counts]:
    if (missing := build.missing()) is not None:
        pytest.skip(missing)
    return counts.measure()


class TestBuilt:
    """The module that is installed, for the architectures it was built for."""

    def test_budgets_hold(self, measured: Measured) -> None:
        assert measured
        assert [*budgets.resource_misses(budgets.read(), "cuda", measured)] == []

    def test_a_planted_worse_kernel_is_found(self, measured: Measured) -> None:
        planted = budgets.read()
        architecture, found = next(iter(measured.items()))
        kernel = next(kernel for kernel in found if kernel.name == "fused_conv")
        planted["cuda"][str(kernel)][architecture]["mma"] += 1
        [miss] = budgets.resource_misses(planted, "cuda", measured)
        assert miss.startswith(f"{kernel}, {architecture}: mma ")


class TestCounted:
    """Under the emulator's check build, which other tests build too."""

    def test_budgets_hold(self, counted: list[Counts]) -> None:
        assert [*budgets.count_misses(budgets.read(), "cuda", counted)] == []

    def test_every_kernel_is_counted(self, counted: list[Counts]) -> None:
        ops = {count.op.split()[0] for count in counted}
        assert ops == {
            "bias_act",
            "bias_act_backward",
            "bias_act_double_backward",
            "demod_act",
            "demod_act_backward",
            "scale_channels",
            "scale_channels_backward",
            "upfirdn2d",
            "fused_conv",
        }

    def test_document_is_up_to_date(self, counted: list[Counts]) -> None:
        text = tables.DOCUMENT.read_text()
        assert tables.part(text, "cuda counts") == tables.counts_table(counted)


AMD = """
	.text
	global_load_dwordx4 v[0:3], v[4:5], off
	buffer_load_dwordx4 v10, s[0:3], 0 offen lds
	v_mfma_f32_32x32x8_f16 a[0:15], v[0:1], v[2:3], a[0:15]
	global_store_dwordx2 v[0:1], v[2:3], off
	buffer_store_dwordx4 v[0:3], v4, s[0:3], 0 offen
	.amdgpu_metadata
  - .agpr_count:     16
    .private_segment_fixed_size: 12
    .sgpr_spill_count: 1
    .vgpr_count:     152
    .vgpr_spill_count: 2
"""


@pytest.fixture(scope="module")
def triton() -> Any:
    """The module that compiles Triton's kernels."""
    if (why := triton_resources.missing()) is not None:
        pytest.skip(why)
    return triton_resources


def launched(triton: Any, case: str = "bias_act lrelu", size: int = 64) -> triton_resources.Launch:
    """The launch of a pointwise case on 64 channels of size × size pixels."""
    images = Images(torch.float16, torch.contiguous_format, "meta")
    backend = TritonBackend("triton", ("meta",), lambda: None)
    call = dict(cases.pointwise(backend, images, size))[case]
    with triton.recorded(("cuda", 90)) as launches:
        call()
    [only] = launches
    return only


class TestTriton:
    """What is compiled ahead of time, kernel by kernel."""

    def test_a_good_kernel(self, triton: Any) -> None:
        found = triton.resources_of(launched(triton), "sm_90", None)
        assert found.loads and found.stores
        assert found.spills == found.stack == found.mma == 0

    def test_sizes_of_no_whole_vectors_are_seen(self, triton: Any) -> None:
        found = triton.resources_of(launched(triton, size=63), "sm_90", None)
        assert found.stores == 0

    def test_spills_are_seen(self, triton: Any) -> None:
        usual = launched(triton, "demod_act_backward lrelu noise")
        squeezed = replace(usual, options={**usual.options, "maxnreg": 32})
        found = triton.resources_of(squeezed, "sm_90", None)
        assert found.spills and found.stack

    def test_amd(self) -> None:
        found = triton_resources.of_assembly(AMD, threads=256, shared=1024)
        assert (found.registers, found.spills, found.stack) == (152, 3, 12)
        assert (found.loads, found.stores, found.copies) == (2, 1, 1)
        assert (found.mma, found.mma_family) == (1, "v_mfma")

    def test_every_kernel_is_compiled(self, triton: Any) -> None:
        names = {
            kernel.name
            for dtype, layout in triton.IMAGES["sm_90"]
            for kernel, _ in triton.launches_of("sm_90", dtype, layout)
        }
        modules = [*Path(launch.__file__).parent.glob("*.py")]
        written = re.findall(r"^def (\w+)_kernel\(", "".join(m.read_text() for m in modules), re.M)
        assert names == {f"triton {name}" for name in written}

    @pytest.mark.slow
    @pytest.mark.timeout(1200)
    def test_budgets_hold(self, triton: Any) -> None:
        import triton as package

        read = budgets.read()
        if package.__version__ != read["compilers"]["triton"]:
            pytest.skip(f"budgets are for another Triton than {package.__version__}")
        assert [*budgets.resource_misses(read, "triton", triton.measure())] == []


class TestTritonCounted:
    def test_what_is_read_again(self) -> None:
        if (why := emulator.missing()) is not None:
            pytest.skip(why)
        images = Images(torch.float32, torch.contiguous_format)
        calls = dict(cases.resampling(ttsem.BACKEND, images, 64, 1))
        asked, once = triton_counts.count(calls["upfirdn2d blur4"])
        assert asked > 2 * once  # every tap reads a row again
        assert 1 < once < 1.5  # and strips share a margin

    def test_pieces(self) -> None:
        traffic = triton_counts.Traffic()
        traffic.add("a", np.array([0, 4, 4]), 4)
        traffic.add("a", np.array([4]), 2)
        traffic.add("b", np.array([4]), 2)
        assert (traffic.asked, traffic.once) == (8 + 2 + 2, 8 + 2)

    @pytest.mark.slow
    @pytest.mark.timeout(1200)
    def test_budgets_hold(self) -> None:
        if (why := emulator.missing()) is not None:
            pytest.skip(why)
        found = triton_counts.measure()
        assert [*budgets.count_misses(budgets.read(), "triton", found)] == []
        text = tables.DOCUMENT.read_text()
        assert tables.part(text, "triton counts") == tables.triton_counts_table(found)


PYTHON = '''
"""A docstring."""
# A comment.
x = """a string
of two lines"""

def f() -> int:
    """What it does."""
    return 1  # why
'''

CPP = """
// A comment.
int f() {  // why
    /* of two
       lines */
    return 1;

}
"""


class TestDocument:
    def test_lines_of_code(self) -> None:
        assert comparison.lines_of_code(PYTHON, python=True) == 4
        assert comparison.lines_of_code(CPP, python=False) == 3

    @pytest.fixture
    def text(self) -> str:
        return tables.DOCUMENT.read_text()

    def test_roofline(self, text: str) -> None:
        assert tables.part(text, "roofline") == roofline.table()

    def test_exceptions(self, text: str) -> None:
        assert tables.part(text, "exceptions") == tables.exceptions_table(budgets.read())

    def test_every_exception_has_a_reason(self) -> None:
        read = budgets.read()
        assert all(
            len(entry["why"]) > 20
            for entry in read["exceptions"] + read["spilling"] + read["other_mma"]
        )

    def test_budgets_are_written_as_the_program_writes_them(self, tmp_path: Path) -> None:
        budgets.write(budgets.read(), tmp_path / "budgets.json")
        assert (tmp_path / "budgets.json").read_text() == budgets.PATH.read_text()
        json.loads(budgets.PATH.read_text())
