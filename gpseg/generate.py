"""`python -m gpseg.generate`: from a generator to pictures and measures of it."""

from gpseg.commandline import run
from gpseg.evaluation.generation import GenerateConfig, generate

DESCRIPTION = """Show and measure what a generator makes.

The folder gets a grid for each truncation, single images, a grid of mixed styles (layout from the left edge, colours
and detail from the upper), a looping interpolation and, with --metrics, metrics.json."""

if __name__ == "__main__":
    run("gpseg.generate", GenerateConfig, generate, DESCRIPTION)
