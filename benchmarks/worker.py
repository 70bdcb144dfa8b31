"""A process that measures with the operators of one tree, on request: `python worker.py TREE`, for `--base`.

Problems, contestants and clocks are those of the tree that this file is in; gpseg's operators and models are the other's,
so that both trees are asked the same. A request is a line of JSON, and so is the answer.
"""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).resolve().parents[1]


def load(tree: Path) -> None:
    """Import gpseg from a tree, but `gpseg.selftest` and `benchmarks` from this one."""
    sys.path[0] = str(tree)
    import gpseg

    assert gpseg.__file__ and Path(gpseg.__file__).is_relative_to(tree), gpseg.__file__
    sys.path[0] = str(HERE)
    package = HERE / "gpseg" / "selftest"
    spec = importlib.util.spec_from_file_location(
        "gpseg.selftest", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None and spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    sys.modules["gpseg.selftest"] = vars(gpseg)["selftest"] = module
    spec.loader.exec_module(module)


def serve(requests: Any, answers: Any) -> None:
    """Answer until there are no more requests: {"prepare": {…}} sets a problem up and checks it, {"time": true} times
    it once."""
    from benchmarks import prepared

    timed: Callable[[], float] | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if "prepare" in request:
                timed = None
                timed = prepared.timed_call(**request["prepare"])
                answer: dict[str, Any] = {"ready": True}
            else:
                assert timed is not None
                answer = {"seconds": timed()}
        except Exception as error:
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:400]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever asks ends it
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    load(Path(sys.argv[1]).resolve())
    serve(sys.stdin, answers)
