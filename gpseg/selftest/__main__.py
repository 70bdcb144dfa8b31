"""`python -m gpseg.selftest`: are the operators right and fast on this machine?"""

from gpseg.commandline import run
from gpseg.selftest.command import SelftestConfig, selftest

DESCRIPTION = """Check every operator on every backend of this machine against a reference in float64, then, on a GPU, measure
it against the usual compositions of PyTorch calls.

Results go to one file, made to be sent. The exit code is 1 if a check failed. Without a GPU it checks the CPU's
backends. With one, the benchmark takes by far the most time, as torch.compile is one of the contestants: see --quick
and --no-benchmark. Triton's kernels, more than a thousand, are compiled one after another the first time."""

if __name__ == "__main__":
    run("gpseg.selftest", SelftestConfig, selftest, DESCRIPTION)
