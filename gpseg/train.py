"""`python -m gpseg.train`: from a few labelled images, many unlabelled ones and a generator to a segmenter."""

from gpseg.commandline import run
from gpseg.evaluation.segment import TrainConfig, train_segmenter

DESCRIPTION = """Train a part segmenter from a handful of labelled images.

Without options it draws a data set of faces, takes the package's own generator of such faces and trains on five
labelled images: a trial of everything, in minutes. The run folder gets segmenter.safetensors (what gpseg.predict takes), results.json
and report.html.

"torchrun --nproc-per-node N -m gpseg.train ..." shares every batch among N processes, one for each GPU."""

if __name__ == "__main__":
    run("gpseg.train", TrainConfig, train_segmenter, DESCRIPTION)
