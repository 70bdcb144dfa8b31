"""Building the CUDA kernels: with which toolkit, for which GPUs, and what comes out."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cuda_toolkit
from cuda_toolkit import Architecture, NoToolkitError, Toolkit, ToolkitError

ROOT = Path(__file__).parents[1]

NVCC = """#!/bin/sh
case "$1" in
--dryrun)
    echo '#$ TOP={home}/bin/..' >&2
    echo '#$ INCLUDES="-I{home}/bin/../include"  ' >&2
    echo '#$ SYSTEM_INCLUDES="-isystem" "{home}/bin/../include/cccl"  ' >&2
    echo '#$ LIBRARIES=  "-L{home}/bin/../lib/stubs" "-L{home}/bin/../lib"' >&2 ;;
--version) echo 'Cuda compilation tools, release {version}, V{version}.88' ;;
--list-gpu-arch) printf 'compute_75\\ncompute_80\\ncompute_90\\ncompute_100\\ncompute_120\\n' ;;
esac
"""


def write_script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def make_nvcc(home: Path, version: str = "13.0") -> None:
    write_script(home / "bin" / "nvcc", NVCC.format(home=home, version=version))


def make_headers(home: Path) -> None:
    for header in cuda_toolkit.HEADERS:
        path = home / "include" / ("cccl" if header.startswith("nv/") else ".") / header
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (home / "lib").mkdir()


def make_toolkit(home: Path, version: str = "13.0") -> Path:
    make_nvcc(home, version)
    make_headers(home)
    return home


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Where Python's `nvidia` packages are: nowhere, until a test adds a directory."""
    locations: list[str] = []
    spec = SimpleNamespace(submodule_search_locations=locations)
    monkeypatch.setattr(cuda_toolkit, "find_spec", lambda name: spec)
    return locations


@pytest.mark.usefixtures("wheels")
class TestFind:
    def test_in_cuda_home(self, tmp_path: Path) -> None:
        home = make_toolkit(tmp_path / "cuda", "13.1")
        assert cuda_toolkit.find({"CUDA_HOME": str(home)}) == Toolkit(
            home,
            (13, 1),
            (home / "include", home / "include" / "cccl"),
            (home / "lib",),
            frozenset({(7, 5), (8, 0), (9, 0), (10, 0), (12, 0)}),
        )

    def test_cuda_home_goes_before_the_path(self, tmp_path: Path) -> None:
        first, second = make_toolkit(tmp_path / "1"), make_toolkit(tmp_path / "2")
        environ = {"CUDA_HOME": str(first), "PATH": str(second / "bin")}
        assert cuda_toolkit.find(environ).home == first

    def test_on_the_path(self, tmp_path: Path, wheels: list[str]) -> None:
        wheels.append(str(make_toolkit(tmp_path / "nvidia" / "cu13").parent))
        home = make_toolkit(tmp_path / "cuda")
        assert cuda_toolkit.find({"PATH": f"/nowhere:{home}/bin"}).home == home

    def test_behind_a_wrapper_script(self, tmp_path: Path) -> None:
        home = make_toolkit(tmp_path / "cuda")
        write_script(tmp_path / "bin" / "nvcc", f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
        assert cuda_toolkit.find({"PATH": str(tmp_path / "bin")}).home == home
        assert cuda_toolkit.find({"CUDA_HOME": str(tmp_path)}).home == home

    def test_behind_a_link(self, tmp_path: Path) -> None:
        home = make_toolkit(tmp_path / "cuda-13.0")
        (tmp_path / "cuda").symlink_to(home)
        assert cuda_toolkit.find({"CUDA_HOME": str(tmp_path / "cuda")}).home == home

    def test_among_pythons_packages(self, tmp_path: Path, wheels: list[str]) -> None:
        """The runtime that torch brings may be in another directory than nvcc."""
        nvcc, runtime = tmp_path / "venv" / "nvidia", tmp_path / "system" / "nvidia"
        make_nvcc(nvcc / "cu13")
        make_headers(runtime / "cu13")
        make_toolkit(nvcc / "cu9")
        wheels += [str(nvcc), str(runtime)]
        toolkit = cuda_toolkit.find({"PATH": "/nowhere"})
        assert toolkit.home == nvcc / "cu13"
        assert runtime / "cu13" / "include" in toolkit.include_dirs
        assert runtime / "cu13" / "include" / "cccl" in toolkit.include_dirs
        assert runtime / "cu13" / "lib" in toolkit.library_dirs

    def test_cuda_home_without_nvcc(self, tmp_path: Path) -> None:
        path = str(make_toolkit(tmp_path / "cuda") / "bin")
        with pytest.raises(NoToolkitError, match="CUDA_HOME is /nowhere, which has no bin/nvcc"):
            cuda_toolkit.find({"CUDA_HOME": "/nowhere", "PATH": path})

    def test_nowhere(self) -> None:
        with pytest.raises(NoToolkitError, match=r"there is no nvcc in .*requirements-nvcc\.txt"):
            cuda_toolkit.find({"PATH": "/nowhere"})

    @pytest.mark.parametrize("header", cuda_toolkit.HEADERS)
    def test_without_a_header(self, tmp_path: Path, header: str) -> None:
        home = make_toolkit(tmp_path / "cuda")
        for path in home.rglob(Path(header).name):
            path.unlink()
        with pytest.raises(NoToolkitError, match=f"{home} has no {header}"):
            cuda_toolkit.find({"CUDA_HOME": str(home)})

    @pytest.mark.parametrize(
        ("script", "complaint"),
        [("#!/bin/sh\nexit 3\n", "does not run"), ("#!/bin/sh\necho hello\n", "is not an nvcc")],
    )
    def test_an_nvcc_that_is_none(self, tmp_path: Path, script: str, complaint: str) -> None:
        write_script(tmp_path / "bin" / "nvcc", script)
        with pytest.raises(NoToolkitError, match=complaint):
            cuda_toolkit.find({"CUDA_HOME": str(tmp_path)})


@pytest.mark.usefixtures("wheels")
class TestToBuildWith:
    @pytest.mark.parametrize("choice", [{}, {"GPSEG_BUILD_CUDA": ""}, {"GPSEG_BUILD_CUDA": "auto"}])
    def test_auto(self, tmp_path: Path, choice: dict[str, str]) -> None:
        home = make_toolkit(tmp_path / "cuda", "13.2")
        there, absent = {"CUDA_HOME": str(home)}, {"PATH": "/nowhere"}
        assert cuda_toolkit.to_build_with("13.0", {**choice, **there}).home == home
        with pytest.raises(NoToolkitError, match="there is no nvcc"):
            cuda_toolkit.to_build_with("13.0", {**choice, **absent})
        with pytest.raises(NoToolkitError, match="torch installed here was built without CUDA"):
            cuda_toolkit.to_build_with(None, {**choice, **there})

    def test_1(self, tmp_path: Path) -> None:
        home = make_toolkit(tmp_path / "cuda")
        environ = {"GPSEG_BUILD_CUDA": "1", "CUDA_HOME": str(home)}
        assert cuda_toolkit.to_build_with("13.0", environ).home == home
        self.check_fails(None, environ, "GPSEG_BUILD_CUDA is 1, but the torch installed here")
        environ = {"GPSEG_BUILD_CUDA": "1", "PATH": "/nowhere"}
        self.check_fails("13.0", environ, "GPSEG_BUILD_CUDA is 1, but there is no nvcc")

    def test_0(self, tmp_path: Path) -> None:
        home = make_toolkit(tmp_path / "cuda", "12.4")
        with pytest.raises(NoToolkitError, match="GPSEG_BUILD_CUDA is 0"):
            cuda_toolkit.to_build_with("13.0", {"GPSEG_BUILD_CUDA": "0", "CUDA_HOME": str(home)})

    @pytest.mark.parametrize("choice", ["auto", "1"])
    def test_torch_of_another_cuda(self, tmp_path: Path, choice: str) -> None:
        home = make_toolkit(tmp_path / "cuda", "12.4")
        self.check_fails(
            "13.0",
            {"GPSEG_BUILD_CUDA": choice, "CUDA_HOME": str(home)},
            f"the nvcc in {home} is CUDA 12.4 but torch was built for CUDA 13.0:"
            " set CUDA_HOME to a CUDA 13 toolkit, or GPSEG_BUILD_CUDA=0",
        )

    def test_any_other_choice(self) -> None:
        complaint = "GPSEG_BUILD_CUDA is 'yes'; it can be auto, 1 or 0"
        self.check_fails("13.0", {"GPSEG_BUILD_CUDA": "yes"}, complaint)

    def check_fails(self, torch_cuda: str | None, environ: dict[str, str], complaint: str) -> None:
        """The build stops, instead of going on without CUDA."""
        with pytest.raises(ToolkitError, match=re.escape(complaint)) as caught:
            cuda_toolkit.to_build_with(torch_cuda, environ)
        assert not isinstance(caught.value, NoToolkitError)


class TestArchitectures:
    KNOWN = frozenset({(7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)})

    def names(self, requested: str | None, known: frozenset[tuple[int, int]] = KNOWN) -> list[str]:
        toolkit = Toolkit(Path("/cuda"), (13, 0), (), (), known)
        environ = {} if requested is None else {"TORCH_CUDA_ARCH_LIST": requested}
        chosen = cuda_toolkit.architectures(toolkit, environ)
        return [name for architecture in chosen for name in architecture.names]

    def test_by_default(self) -> None:
        for nothing in None, "", " ; ":
            assert self.names(nothing) == ["sm_80", "sm_90", "sm_100", "compute_100"]

    def test_by_default_only_what_nvcc_knows(self) -> None:
        old = frozenset({(7, 5), (8, 0), (9, 0)})
        assert self.names(None, old) == ["sm_80", "sm_90", "compute_90"]

    @pytest.mark.parametrize(
        "requested", ["8.0;9.0a;10.0+PTX", " 8.0 9.0a  10.0+PTX;", "8.0; 9.0a 10.0+PTX"]
    )
    def test_as_requested(self, requested: str) -> None:
        assert self.names(requested) == ["sm_80", "sm_90a", "sm_100", "compute_100"]

    def test_leaves_out_what_the_kernels_can_not_run_on(self) -> None:
        assert self.names("7.0 7.5 8.6 12.0+PTX") == ["sm_86", "sm_120", "compute_120"]
        with pytest.raises(ToolkitError, match=r"'7.5', but the kernels need 8.0 or later"):
            self.names("7.5")

    def test_refuses_what_nvcc_does_not_know(self) -> None:
        with pytest.raises(
            ToolkitError, match=r"asks for sm_103a, which .* does not know.* 7.5 8.0 8.6 9.0 10.0"
        ):
            self.names("9.0 10.3a")

    @pytest.mark.parametrize("word", ["Hopper", "90", "9.0+ptx", "9.0b", "sm_90"])
    def test_refuses_other_words(self, word: str) -> None:
        with pytest.raises(ToolkitError, match=f"has '{re.escape(word)}', which is not like 9.0"):
            self.names(f"8.0 {word}")

    def test_flags(self) -> None:
        assert Architecture((9, 0), "a").flag == "-gencode=arch=compute_90a,code=[sm_90a]"
        with_ptx = Architecture((10, 0), ptx=True).flag
        assert with_ptx == "-gencode=arch=compute_100,code=[sm_100,compute_100]"


def architectures_in(binary: Path) -> set[str]:
    """What cuobjdump finds: `sm_90` for machine code, `compute_90` for PTX."""
    triton = pytest.importorskip("triton", reason="its package brings cuobjdump")
    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    listing = subprocess.run(
        [cuobjdump, "-lelf", "-lptx", binary], capture_output=True, text=True, check=True
    ).stdout
    code = re.findall(r"ELF file .*\.(sm_\w+)\.cubin", listing)
    ptx = re.findall(r"PTX file .*\.sm_(\w+)\.ptx", listing)
    return {*code, *(f"compute_{number}" for number in ptx)}


@pytest.fixture
def toolkit() -> Toolkit:
    try:
        return cuda_toolkit.find()
    except NoToolkitError as error:
        pytest.skip(str(error))


def test_the_toolkit_here_compiles_for_a_list_of_architectures(
    toolkit: Toolkit, tmp_path: Path
) -> None:
    chosen = cuda_toolkit.architectures(toolkit, {"TORCH_CUDA_ARCH_LIST": "8.6 9.0a 10.0+PTX"})
    source = tmp_path / "kernel.cu"
    source.write_text(
        "#include <cuda_bf16.h>\n"
        "#include <cuda_fp16.h>\n"
        "__global__ void twice_kernel(__half* x) { x[threadIdx.x] = x[threadIdx.x] + x[threadIdx.x]; }\n"
    )
    command = [toolkit.home / "bin" / "nvcc", *(a.flag for a in chosen), "-c", source]
    command += [f"-I{directory}" for directory in toolkit.include_dirs]
    subprocess.run([*command, "-o", tmp_path / "kernel.o"], check=True)
    assert architectures_in(tmp_path / "kernel.o") == {
        "sm_86",
        "sm_90a",
        "sm_100",
        "compute_100",
    }


@pytest.fixture
def built() -> Path:
    spec = importlib.util.find_spec("gpseg._cuda")
    if spec is None or spec.origin is None:
        pytest.skip("gpseg._cuda is not built")
    return Path(spec.origin)


class TestBuilt:
    def test_importing_registers_the_ops_and_touches_no_gpu(self, built: Path) -> None:
        code = """
import torch, gpseg._cuda
assert not torch.cuda.is_initialized()
kernels = [s.name for s in torch._C._jit_get_all_schemas() if s.name.startswith("gpseg_cuda::")]
assert "gpseg_cuda::upfirdn2d" in kernels
for name in kernels:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA"), name
    assert not torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU"), name
"""
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_holds_the_architectures_that_it_says(self, built: Path) -> None:
        import gpseg._cuda

        info = gpseg._cuda.build_info()
        assert set(info["archs"]) == architectures_in(built)
        assert info["cuda"] // 1000 == int(info["nvcc"].split(".")[0])
        assert torch.version.cuda is not None
        assert info["nvcc"].split(".")[0] == torch.version.cuda.split(".")[0]

    @pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
    def test_needs_no_cuda_library_but_what_it_holds(self, built: Path) -> None:
        dynamic = subprocess.run(
            ["readelf", "-d", built], capture_output=True, text=True, check=True
        ).stdout
        needed = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
        assert "libtorch_cpu.so" in needed
        assert not [library for library in needed if "cuda" in library]


@pytest.mark.slow
def test_the_source_distribution_has_all_that_a_build_needs(tmp_path: Path) -> None:
    setup = [sys.executable, "setup.py", "-q"]
    environ = {**os.environ, "GPSEG_BUILD_CUDA": "0"}
    subprocess.run(
        [*setup, "egg_info", "--egg-base", tmp_path, "sdist", "--dist-dir", tmp_path],
        cwd=ROOT,
        env=environ,
        check=True,
    )
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as files:
        packed = {name.partition("/")[2] for name in files.getnames()}
    needed = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    needed |= {"setup.py", "pyproject.toml", "cuda_toolkit.py", "requirements-nvcc.txt"}
    assert needed <= packed


@pytest.mark.slow
@pytest.mark.skipif(torch.version.cuda is None, reason="this torch has no CUDA to build for")
class TestABuildThatCanNotGoOn:
    def test_a_choice_that_is_none(self) -> None:
        self.check_ends(
            {"GPSEG_BUILD_CUDA": "yes"}, "GPSEG_BUILD_CUDA is 'yes'; it can be auto, 1 or 0"
        )

    def test_no_toolkit(self) -> None:
        self.check_ends(
            {"GPSEG_BUILD_CUDA": "1", "CUDA_HOME": "/nowhere"},
            "GPSEG_BUILD_CUDA is 1, but CUDA_HOME is /nowhere, which has no bin/nvcc",
        )

    def test_torch_of_another_cuda(self, tmp_path: Path) -> None:
        home = make_toolkit(tmp_path / "cuda", "9.2")
        major = torch.version.cuda.split(".")[0]
        self.check_ends(
            {"GPSEG_BUILD_CUDA": "auto", "CUDA_HOME": str(home)},
            f"the nvcc in {home} is CUDA 9.2 but torch was built for CUDA {torch.version.cuda}:"
            f" set CUDA_HOME to a CUDA {major} toolkit, or GPSEG_BUILD_CUDA=0",
        )

    def check_ends(self, variables: dict[str, str], complaint: str) -> None:
        """setup.py ends with that sentence, and no traceback."""
        done = subprocess.run(
            [sys.executable, "setup.py", "--version"],
            cwd=ROOT,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1] == f"gpseg: {complaint}"  # after what torch itself logs
        assert "Traceback" not in done.stderr
