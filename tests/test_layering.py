"""Imports point one way, and importing does nothing."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS = (
    {"gpseg", "gpseg._C", "gpseg._cuda", "gpseg.errors"},
    {"gpseg.atomic", "gpseg.processes"},
    {"gpseg.data"},
    {"gpseg.backends"},
    {"gpseg.ops"},
    {"gpseg.nn"},
    {"gpseg.models"},
    {"gpseg.training"},
    {"gpseg.evaluation"},
    {"gpseg.commandline"},
    {
        "gpseg.__main__",
        "gpseg.pretrain",
        "gpseg.train",
        "gpseg.predict",
        "gpseg.evaluate",
        "gpseg.convert",
        "gpseg.generate",
    },
    {"gpseg.selftest"},
)
"""A module may import from its own package and from layers before its own. gpseg._C and _cuda are csrc."""

ONLY = {
    "gpseg.backends": {"gpseg._C", "gpseg._cuda", "gpseg.atomic"},
    "gpseg.ops": {"gpseg.backends"},
    "gpseg.atomic": {"gpseg.errors"},
}
"""Packages that may use nothing of gpseg but these: the operators stand on their own."""


def layer_of(module: str) -> tuple[int, str]:
    """Place in `LAYERS` and the package there that a module belongs to."""
    for i, names in enumerate(LAYERS):
        for name in names - {"gpseg"}:
            if module == name or module.startswith(f"{name}."):
                return i, name
    assert module == "gpseg", f"{module} has no place in LAYERS: give it one"
    return 0, "gpseg"


def imports(source: str) -> Iterator[str]:
    """Modules of gpseg that a source file imports, at the top, in functions or by name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("gpseg"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            if node.module == "gpseg":
                yield from (submodule(alias.name) for alias in node.names)
            elif node.module and node.module.startswith("gpseg."):
                yield node.module
        elif isinstance(node, ast.Constant) and node.value in ("gpseg._C", "gpseg._cuda"):
            yield str(node.value)  # importlib.import_module("gpseg._C")


def submodule(name: str) -> str:
    package = ROOT / "gpseg" / name
    return f"gpseg.{name}" if package.is_dir() or package.with_suffix(".py").exists() else "gpseg"


def violations(module: str, source: str) -> list[str]:
    """Imports of a module that point the wrong way."""
    layer, package = layer_of(module)
    wrong = []
    for imported in imports(source):
        below, other = layer_of(imported)
        if package == other or imported == "gpseg":
            continue
        if below >= layer or other not in ONLY.get(package, {other}):
            wrong.append(f"{module} imports {imported}")
    return wrong


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / "gpseg").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_imports_point_one_way() -> None:
    assert not [v for module, path in modules() for v in violations(module, path.read_text())]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gpseg.ops.bias_act", "from gpseg.models import stylegan2"),
        ("gpseg.ops.bias_act", "from gpseg.data import Classes"),
        ("gpseg.backends.eager", "def f():\n    import gpseg.ops"),
        ("gpseg.backends", "from gpseg import ops"),
        ("gpseg.data.folder", "from gpseg.models.encoder import Encoder"),
        ("gpseg.models.encoder", "from gpseg.training.losses import x"),
        ("gpseg.training.losses", "from gpseg.train import main"),
        ("gpseg.nn.layers", "from gpseg.selftest import textbook"),
        (
            "gpseg.nn.layers",
            "import importlib\nimportlib.import_module('gpseg._C')\nimport gpseg.evaluation",
        ),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) == 1


def test_nothing_imports_tests_or_benchmarks() -> None:
    for _, path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] in ("tests", "benchmarks") for n in names), path


def test_kernels_do_not_include_torch() -> None:
    """Only the thin host files next to csrc's root bind kernels to torch."""
    for path in (ROOT / "csrc").rglob("*"):
        if path.is_file() and path.parent != ROOT / "csrc":
            assert "#include <torch" not in path.read_text(), path


PROBE = """
import sys
import gpseg, gpseg.ops
gpseg.ops.backends()
import torch
assert not torch.cuda.is_initialized()
busy = {"triton", "torch.utils.cpp_extension", "torch._inductor", "gpseg.models", "gpseg.data"}
assert not busy & set(sys.modules), busy & set(sys.modules)
"""


def test_importing_prints_nothing_and_compiles_nothing(tmp_path: Path) -> None:
    caches = (
        "TORCH_EXTENSIONS_DIR",
        "TORCHINDUCTOR_CACHE_DIR",
        "TRITON_CACHE_DIR",
        "HOME",
        "TMPDIR",
    )
    environment = {k: v for k, v in os.environ.items() if k in ("LD_LIBRARY_PATH", "SYSTEMROOT")}
    environment |= {name: str(tmp_path) for name in caches}
    environment |= {"PATH": "", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
