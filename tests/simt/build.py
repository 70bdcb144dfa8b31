"""Builds the CUDA kernels for the CPU: `python tests/simt/build.py [plain|check|asan]`.

The library of the whole package is build/simt/libgpseg_simt.so (`_check.so`, `_asan.so`): csrc/ops.cpp and the
rewritten csrc/cuda. With `--source`, one stand-alone .cu instead. Objects are kept and made anew when what they
were made from has changed.
"""

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for when this file is run as a program
import cuda_toolkit  # noqa: E402
from tests.simt.to_host import ConversionError, convert  # noqa: E402

Variant = Literal["plain", "check", "asan"]
JOBS = 2
COMMON = ["-std=c++20", "-fPIC", "-fno-gnu-unique", "-fno-strict-aliasing", "-DGPSEG_SIMT"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
# How kernels are compiled. The check build wants each access of the source recorded once and at one place:
# copies of it for different conditions would split a warp's request.
KERNEL_FLAGS: dict[Variant, list[str]] = {
    "plain": ["-O2"],
    "check": [
        "-O1",
        "-g",
        "-fsanitize=thread",
        "--param=tsan-instrument-func-entry-exit=0",
        "-fno-tree-vectorize",
        "-fno-thread-jumps",
        "-DGPSEG_SIMT_CHECK",
    ],
    "asan": ["-O1", "-g", *SANITIZERS],
}
RUNTIME_FLAGS: dict[Variant, list[str]] = {
    "plain": ["-O2"],
    "check": ["-O2", "-DGPSEG_SIMT_CHECK"],
    "asan": ["-O1", "-g", "-fsanitize=address"],
}
LINK_FLAGS: dict[Variant, list[str]] = {"plain": [], "check": [], "asan": SANITIZERS}
SUFFIX: dict[Variant, str] = {"plain": "", "check": "_check", "asan": "_asan"}


class BuildError(RuntimeError):
    """What the emulator needs is missing, or the compiler refused the source."""


@dataclass(frozen=True)
class Object:
    source: Path
    output: Path
    flags: list[str]


def compiler() -> str:
    """g++.

    Raises:
        BuildError: it is not there.
    """
    found = shutil.which(os.environ.get("CXX", "g++"))
    if found is None:
        raise BuildError("the emulator needs g++")
    return found


def cuda_headers() -> list[str]:
    """Flags for CUDA's headers."""
    return [f"-isystem{directory}" for directory in cuda_toolkit.find().include_dirs]


def missing() -> str | None:
    """What the emulator needs and this machine lacks, in one line; None if nothing."""
    try:
        compiler()
        cuda_toolkit.find()
    except (BuildError, cuda_toolkit.NoToolkitError) as error:
        return str(error)
    return None


def asan_environment() -> dict[str, str]:
    """What a Python process needs in its environment to load an `asan` build."""
    libraries = [
        subprocess.run(
            [compiler(), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in (
            "libasan.so",
            "libstdc++.so.6",
        )  # without the latter, exceptions can't be caught
    ]
    return {"LD_PRELOAD": " ".join(libraries), "ASAN_OPTIONS": "detect_leaks=0"}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_if_changed(path: Path, text: str) -> None:
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def converted(source: Path, output: Path, root: Path) -> Path:
    name = source.relative_to(root) if source.is_relative_to(root) else source
    write_if_changed(output, convert(source.read_text(), str(name)))
    return output


def is_current(item: Object, command: str) -> bool:
    """Whether the object was made by this command from files that have not changed since."""
    record = item.output.with_suffix(".command")
    dependencies = item.output.with_suffix(".d")
    if not (item.output.exists() and dependencies.exists() and record.exists()):
        return False
    if record.read_text() != command:
        return False
    made = item.output.stat().st_mtime_ns
    files = dependencies.read_text().replace("\\\n", " ").split(":", 1)[1].split()
    return all(Path(file).exists() and Path(file).stat().st_mtime_ns < made for file in files)


def compile_object(item: Object) -> None:
    command = [compiler(), *item.flags, "-MMD", "-c", str(item.source), "-o", str(item.output)]
    if is_current(item, " ".join(command)):
        return
    item.output.parent.mkdir(parents=True, exist_ok=True)
    run(command)
    item.output.with_suffix(".command").write_text(" ".join(command))


def run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stderr}")


def link(objects: Sequence[Object], library: Path, flags: Sequence[str]) -> Path:
    with ThreadPoolExecutor(JOBS) as pool:
        list(pool.map(compile_object, objects))
    made_from = max(item.output.stat().st_mtime_ns for item in objects)
    if not library.exists() or library.stat().st_mtime_ns < made_from:
        # its own names first: torch may have brought the real CUDA runtime into the process
        names = [str(item.output) for item in objects]
        fresh = library.with_suffix(".new")  # a library that is in use is replaced, not overwritten
        run(
            [
                compiler(),
                "-shared",
                "-Wl,-Bsymbolic,-z,defs",
                *names,
                *flags,
                "-ldl",
                "-o",
                str(fresh),
            ]
        )
        fresh.replace(library)
    return library


def runtime_objects(variant: Variant, out: Path) -> list[Object]:
    names = ["runtime", "check"] if variant == "check" else ["runtime"]
    flags = [*COMMON, *RUNTIME_FLAGS[variant], *cuda_headers()]
    return [Object(HERE / f"{name}.cpp", out / variant / f"{name}.o", flags) for name in names]


def kernel_flags(
    variant: Variant, includes: Sequence[Path], defines: Sequence[str] = ()
) -> list[str]:
    return [
        *COMMON,
        *KERNEL_FLAGS[variant],
        *(f"-D{define}" for define in defines),
        "-x",
        "c++",
        "-include",
        str(HERE / "simt.h"),
        *(f"-I{folder}" for folder in includes),
        *cuda_headers(),
    ]


def build(variant: Variant = "plain", root: Path = ROOT, out: Path | None = None) -> Path:
    """The package's kernels and their torch ops (`torch.ops.gpseg_simt`); returns the library's path.

    Args:
        variant: `plain` to run, `check` to find faults and count accesses, `asan` for g++'s sanitizers.
        root: the checkout.
        out: where to build, `build/simt` of the checkout by default.

    Raises:
        BuildError: no compiler, or the source doesn't compile.
        NoToolkitError: no CUDA headers.
    """
    import torch

    torch_home = Path(torch.__file__).parent
    out = (out or root / "build" / "simt").resolve()
    csrc = root / "csrc"
    with locked(out):
        tree = out / "source"
        for file in sorted((csrc / "cuda").rglob("*")):
            if file.suffix in (".cu", ".cuh", ".h"):
                converted(file, tree / file.relative_to(csrc), root)
        objects = runtime_objects(variant, out)
        for file in sorted((csrc / "cuda").glob("*.cu")):
            flags = kernel_flags(variant, [tree, csrc])
            objects.append(
                Object(tree / "cuda" / file.name, out / variant / f"{file.stem}.o", flags)
            )
        torch_flags = [
            *COMMON,
            "-O2",
            "-DTORCH_TARGET_VERSION=0x020d000000000000",
            f"-I{csrc}",
            f"-isystem{torch_home / 'include'}",
            f"-isystem{torch_home / 'include' / 'torch' / 'csrc' / 'api' / 'include'}",
        ]
        objects.append(Object(csrc / "ops.cpp", out / "ops.o", torch_flags))
        torch_libraries = [f"-L{torch_home / 'lib'}", f"-Wl,-rpath,{torch_home / 'lib'}"]
        torch_libraries += ["-ltorch", "-ltorch_cpu", "-lc10"]
        library = out / f"libgpseg_simt{SUFFIX[variant]}.so"
        return link(objects, library, [*LINK_FLAGS[variant], *torch_libraries])


def build_source(
    source: Path, variant: Variant = "plain", defines: Sequence[str] = (), out: Path | None = None
) -> Path:
    """A library of one stand-alone .cu file; `defines` are NAME or NAME=VALUE."""
    out = (out or ROOT / "build" / "simt").resolve()
    source = source.resolve()
    with locked(out):
        kind = hashlib.sha256(" ".join([str(source.parent), *defines]).encode()).hexdigest()[:8]
        name = f"{source.stem}-{kind}" if defines else source.stem
        tree = converted(source, out / "source" / f"{source.stem}.cu", ROOT)
        flags = kernel_flags(variant, [source.parent, ROOT / "csrc"], defines)
        objects = [*runtime_objects(variant, out), Object(tree, out / variant / f"{name}.o", flags)]
        return link(objects, out / f"lib{name}{SUFFIX[variant]}.so", LINK_FLAGS[variant])


def main() -> None:
    parser = argparse.ArgumentParser(description="Builds the CUDA kernels for the CPU.")
    parser.add_argument("variant", nargs="?", choices=get_args(Variant), default="plain")
    parser.add_argument("--out", type=Path, help="default: build/simt")
    parser.add_argument("--source", type=Path, help="one stand-alone .cu instead of the package")
    parser.add_argument("-D", dest="defines", action="append", default=[], metavar="NAME[=VALUE]")
    arguments = parser.parse_args()
    try:
        if arguments.source:
            library = build_source(
                arguments.source, arguments.variant, arguments.defines, arguments.out
            )
        else:
            library = build(arguments.variant, out=arguments.out)
    except (BuildError, ConversionError, cuda_toolkit.NoToolkitError) as error:
        raise SystemExit(str(error)) from error
    print(library)


if __name__ == "__main__":
    main()
