"""The CUDA toolkit to compile with: which one, and for which GPUs. For setup.py and the tests' emulator.

`python cuda_toolkit.py` prints where it is, or fails with the reason why there is none.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

HEADERS = ("cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "crt/host_config.h", "nv/target")
"""What the kernels include, directly or not; PyPI has them in several packages."""

OLDEST = (8, 0)
"""Compute capability that the kernels need: asynchronous copies, bfloat16 on tensor cores."""

DEFAULT = ("8.0", "9.0", "10.0")
"""Code for 8.0 runs on 8.6 and 8.9 too, and the newest one's PTX on every later GPU."""


class ToolkitError(Exception):
    """What is wrong with the toolkit or the settings, in one sentence."""


class NoToolkitError(ToolkitError):
    """There is none to compile with."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit.

    Args:
        home: the directory that has `bin/nvcc`, not a wrapper's.
        version: of nvcc, (major, minor).
        include_dirs: where all of `HEADERS` are.
        library_dirs: where cudart is.
        capabilities: compute capabilities that nvcc compiles for.
    """

    home: Path
    version: tuple[int, int]
    include_dirs: tuple[Path, ...]
    library_dirs: tuple[Path, ...]
    capabilities: frozenset[tuple[int, int]]

    @property
    def version_string(self) -> str:
        return ".".join(map(str, self.version))


@dataclass(frozen=True)
class Architecture:
    """One to compile for, as TORCH_CUDA_ARCH_LIST has it: `9.0`, `9.0a`, `10.0+PTX`."""

    capability: tuple[int, int]
    suffix: str = ""
    ptx: bool = False

    @property
    def _number(self) -> str:
        return f"{self.capability[0]}{self.capability[1]}{self.suffix}"

    @property
    def names(self) -> list[str]:
        """What the binary then holds: `sm_90`, and `compute_90` for PTX."""
        return [f"sm_{self._number}"] + [f"compute_{self._number}"] * self.ptx

    @property
    def flag(self) -> str:
        """The argument to nvcc."""
        return f"-gencode=arch=compute_{self._number},code=[{','.join(self.names)}]"


def _wheels() -> list[Path]:
    """Where NVIDIA's Python packages put their parts of a toolkit, newest CUDA first."""
    spec = find_spec("nvidia")
    parents = spec.submodule_search_locations if spec else None
    homes = [home for parent in parents or () for home in Path(parent).glob("cu[0-9]*")]
    return sorted(homes, key=lambda home: int(home.name[2:]), reverse=True)


def _nvcc(environ: Mapping[str, str]) -> Path:
    if cuda_home := environ.get("CUDA_HOME"):
        nvcc = Path(cuda_home) / "bin" / "nvcc"
        if not nvcc.is_file():
            raise NoToolkitError(f"CUDA_HOME is {cuda_home}, which has no bin/nvcc")
        return nvcc
    if on_path := shutil.which("nvcc", path=environ.get("PATH", "")):
        return Path(on_path)
    for home in _wheels():
        if (home / "bin" / "nvcc").is_file():
            return home / "bin" / "nvcc"
    raise NoToolkitError(
        "there is no nvcc in CUDA_HOME, on the PATH or among Python's packages, where"
        " `pip install -r requirements-nvcc.txt` puts one"
    )


def _output_of(nvcc: Path, *arguments: str) -> str:
    try:
        done = subprocess.run([nvcc, *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoToolkitError(f"{nvcc} does not run: {error}") from error
    return done.stdout + done.stderr  # a dry run goes to the latter


def _settings(dry_run: str) -> Iterator[tuple[str, str]]:
    for line in dry_run.splitlines():
        if match := re.match(r"#\$ (\w+)=(.*)", line):
            yield match[1], match[2]


def _directories(arguments: str) -> Iterator[Path]:
    """Of `"-I/a/include" "-isystem" "/b/include" "-L/c/lib"`, those that exist."""
    for argument in shlex.split(arguments):
        directory = Path(re.sub(r"^-(I|L|isystem)", "", argument) or "/nowhere")
        if directory.is_dir():
            yield directory.resolve()


def find(environ: Mapping[str, str] = os.environ) -> Toolkit:
    """The toolkit in CUDA_HOME, else on the PATH, else among Python's packages.

    Raises:
        NoToolkitError: there is none, or it lacks something.
    """
    nvcc = _nvcc(environ)
    # nvcc itself knows best where it is, and works behind wrapper scripts.
    settings = dict(_settings(_output_of(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull)))
    release = re.search(r"release (\d+)\.(\d+)", _output_of(nvcc, "--version"))
    if release is None or "TOP" not in settings:
        raise NoToolkitError(f"{nvcc} is not an nvcc that says where it is and its version")
    home = Path(settings["TOP"]).resolve()
    includes = [*_directories(settings.get("INCLUDES", ""))]
    includes += _directories(settings.get("SYSTEM_INCLUDES", ""))
    libraries = [*_directories(settings.get("LIBRARIES", ""))]
    wheels = _wheels()
    if home in [wheel.resolve() for wheel in wheels]:
        # torch brings the runtime, maybe into another directory of packages than nvcc's.
        same = [wheel for wheel in wheels if wheel.name == home.name]
        includes += [p for wheel in same for p in (wheel / "include", wheel / "include" / "cccl")]
        libraries += [wheel / "lib" for wheel in same]
    for header in HEADERS:
        if not any((directory / header).is_file() for directory in includes):
            raise NoToolkitError(f"the CUDA toolkit in {home} has no {header}")
    listed = re.findall(r"compute_(\d+)(\d)\b", _output_of(nvcc, "--list-gpu-arch"))
    return Toolkit(
        home,
        (int(release[1]), int(release[2])),
        tuple(dict.fromkeys(includes)),
        tuple(dict.fromkeys(libraries)),
        frozenset((int(major), int(minor)) for major, minor in listed),
    )


def to_build_with(torch_cuda: str | None, environ: Mapping[str, str] = os.environ) -> Toolkit:
    """The toolkit for gpseg._cuda, as GPSEG_BUILD_CUDA says.

    Args:
        torch_cuda: `torch.version.cuda`.

    Raises:
        NoToolkitError: the CUDA kernels are to be left out.
        ToolkitError: the build can't go on.
    """
    choice = environ.get("GPSEG_BUILD_CUDA") or "auto"
    if choice not in ("auto", "0", "1"):
        raise ToolkitError(f"GPSEG_BUILD_CUDA is {choice!r}; it can be auto, 1 or 0")
    if choice == "0":
        raise NoToolkitError("GPSEG_BUILD_CUDA is 0")
    try:
        if torch_cuda is None:
            raise NoToolkitError("the torch installed here was built without CUDA")
        toolkit = find(environ)
    except NoToolkitError as error:
        if choice == "1":
            raise ToolkitError(f"GPSEG_BUILD_CUDA is 1, but {error}") from error
        raise
    major = torch_cuda.split(".")[0]
    if str(toolkit.version[0]) != major:
        raise ToolkitError(
            f"the nvcc in {toolkit.home} is CUDA {toolkit.version_string} but torch was built for"
            f" CUDA {torch_cuda}: set CUDA_HOME to a CUDA {major} toolkit, or GPSEG_BUILD_CUDA=0"
        )
    return toolkit


def architectures(toolkit: Toolkit, environ: Mapping[str, str] = os.environ) -> list[Architecture]:
    """What to compile for: what TORCH_CUDA_ARCH_LIST asks for, less what is older than `OLDEST`; else
    those of `DEFAULT` that nvcc knows, the newest as PTX too.

    Raises:
        ToolkitError: one is not an architecture, or unknown to nvcc, or none is left.
    """
    names = re.findall(r"[^;\s]+", environ.get("TORCH_CUDA_ARCH_LIST", ""))
    if not names:
        known = [a for a in map(_architecture, DEFAULT) if a.capability in toolkit.capabilities]
        return [*known[:-1], *(replace(newest, ptx=True) for newest in known[-1:])]
    chosen = [a for a in map(_architecture, names) if a.capability >= OLDEST]
    if not chosen:
        raise ToolkitError(
            f"TORCH_CUDA_ARCH_LIST is {' '.join(names)!r}, but the kernels need 8.0 or later"
        )
    for architecture in chosen:
        if architecture.capability not in toolkit.capabilities:
            known_to_nvcc = " ".join(f"{x}.{y}" for x, y in sorted(toolkit.capabilities))
            raise ToolkitError(
                f"TORCH_CUDA_ARCH_LIST asks for {architecture.names[0]}, which the nvcc in"
                f" {toolkit.home} (CUDA {toolkit.version_string}) does not know; it knows {known_to_nvcc}"
            )
    return chosen


def _architecture(name: str) -> Architecture:
    match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", name)
    if match is None:
        raise ToolkitError(
            f"TORCH_CUDA_ARCH_LIST has {name!r}, which is not like 9.0, 9.0a or 9.0+PTX"
        )
    return Architecture((int(match[1]), int(match[2])), match[3], match[4] is not None)


def main() -> None:
    """Print where the toolkit is."""
    try:
        toolkit = find()
    except NoToolkitError as error:
        sys.exit(f"gpseg: {error}")
    print(f"CUDA {toolkit.version_string} in {toolkit.home}")


if __name__ == "__main__":
    main()
