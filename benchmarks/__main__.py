"""`python -m benchmarks`: what does each operator, and the whole model, cost on this machine?"""

from benchmarks.command import BenchmarkConfig, benchmark
from gpseg.commandline import run

DESCRIPTION = """Measure operators and whole models against every reasonable alternative: the usual composition of PyTorch
calls (the textbook), the same through torch.compile, grouped convolution, plain PyTorch in channels_last.

Contestants take turns, so that a machine that slows down slows all; what gives wrong results is reported and not timed,
and the exit code is then 1. docs/performance.md says what the figures mean.

  python -m benchmarks upsample2d-256 'layer*' --dtypes float32 bfloat16
  python -m benchmarks --models --contestants cpp
  python -m benchmarks --scaling
  python -m benchmarks --goals --out runs/goals
  python -m benchmarks 'bias*' --base HEAD~1"""

if __name__ == "__main__":
    run("benchmarks", BenchmarkConfig, benchmark, DESCRIPTION)
