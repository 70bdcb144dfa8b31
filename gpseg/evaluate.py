"""`python -m gpseg.evaluate`: gpseg, its rivals and its controls on the same draws, with intervals."""

from gpseg.commandline import run
from gpseg.evaluation.experiment import EvaluateConfig, evaluate
from gpseg.evaluation.methods import METHODS

DESCRIPTION = f"""Train and score every method on every draw of labelled images.

Methods: {"; ".join(f"{name} ({method.description})" for name, method in METHODS.items())}.

Each cell (a method, a number of labelled images, a draw) is trained in a process of its own and kept; a run that was
stopped goes on with the same command. The folder gets results.json, results.md and report.html."""

if __name__ == "__main__":
    run("gpseg.evaluate", EvaluateConfig, evaluate, DESCRIPTION)
