"""Ten thousand mutations of published checkpoints run no code, don't hang, and don't exhaust memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
MUTATIONS = int(os.environ.get("GPSEG_FUZZ_MUTATIONS", "10000"))
SEED = int(os.environ.get("GPSEG_FUZZ_SEED", "0"))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mutations():
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.published.fuzz", str(MUTATIONS), str(SEED)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-5000:]}\n{done.stderr[-5000:]}"
