"""`python -m gpseg.pretrain`: from unlabelled images to a generator and its discriminator."""

from functools import partial

from gpseg.commandline import run
from gpseg.evaluation.progress import write_progress
from gpseg.training.pretrain import PretrainConfig, pretrain

DESCRIPTION = """Pre-train an image generator (StyleGAN2) on unlabelled images of one class.

The run folder gets generator.safetensors, which holds generator and discriminator and is what gpseg.train takes as
--generator, sample grids, report.html with images and curves, and the training state for --resume."""

if __name__ == "__main__":
    run(
        "gpseg.pretrain",
        PretrainConfig,
        partial(pretrain, after_snapshot=write_progress),
        DESCRIPTION,
    )
