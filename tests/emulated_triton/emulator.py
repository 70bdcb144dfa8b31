"""The backend ttsem: Triton's kernels on CPU tensors, executed from Triton's own IR with faults reported at their lines.

ttsem checks every access against the storage of the tensor it was meant for, and every pair of programs for a race. Here
it is only kept from touching torch.cuda, and from compiling and parsing the same kernel again and again.
"""

import contextlib
import functools
import importlib.util
from collections.abc import Iterator
from typing import Any

from gpseg.backends.triton import launch

CAPABILITY = 90
"""What kernels are compiled for; nothing below Triton's first IR depends on it."""

launches = 0
"""How many there were."""


def missing() -> str | None:
    """Why Triton's kernels can't be emulated here; None if they can."""
    for name in ("triton", "ttsem"):
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: `make test` installs it"
    return None


def install() -> None:
    """Have launches on CPU tensors emulated in this process."""
    if missing() is None:
        launch.emulate = run


def run(kernel: Any, programs: int, *arguments: Any, **options: Any) -> None:
    """Launch a kernel on CPU tensors.

    Raises:
        ttsem.sanitize.KernelFault: it reads or writes where it must not, or its programs race.
    """
    global launches
    launches += 1
    session = _tools()
    with _driver(), session(CAPABILITY, cuda_is_cpu=False) as state:
        kernel[(programs,)](*arguments, **options)
    assert not state.races_unchecked, f"{kernel.__name__}: too large for the race check"


@functools.cache
def _tools() -> Any:
    """ttsem's session, made to remember what it compiled."""
    from ttsem import harness, sanitize

    harness._install_fake_driver = lambda capability: None
    harness.create_function_from_signature = _remembering(harness.create_function_from_signature)
    harness.mlir.parse = functools.lru_cache(maxsize=512)(harness.mlir.parse)
    texts: dict[str, str] = {}

    def ir_for_launch(record: Any, stage: str, target: Any) -> str:
        options, *specialization = harness._specialize(
            record.fn, record.args, record.kwargs, target
        )
        key = repr((record.fn.cache_key, options, specialization))
        if key not in texts:
            harness.mlir.enable_generic_printing()
            text = harness._stage_text(record, stage, target)
            texts[key] = harness.mlir.to_generic(text, None)
        return texts[key]

    harness.ir_for_launch = ir_for_launch
    return sanitize.session


def _remembering(make: Any) -> Any:
    """The function that makes the function that binds a kernel's arguments, once for each kernel."""
    made: dict[int, Any] = {}

    def binder(signature: Any, parameters: Any, backend: Any) -> Any:
        if id(parameters) not in made:
            made[id(parameters)] = parameters, make(signature, parameters, backend)
        return made[id(parameters)][1]

    return binder


@contextlib.contextmanager
def _driver() -> Iterator[None]:
    """A driver that knows what to compile for, and nothing else."""
    from triton.runtime import driver
    from ttsem._fakedriver import _FakeDriver

    before = driver._active
    driver.set_active(_FakeDriver(CAPABILITY))
    try:
        yield
    finally:
        driver._active = before
