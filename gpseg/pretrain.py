"""`python -m gpseg.pretrain`: from unlabelled images to a generator and its discriminator."""

from gpseg.commandline import run
from gpseg.training.pretrain import PretrainConfig, pretrain

DESCRIPTION = """Pre-train an image generator (StyleGAN2) on unlabelled images of one class.

The run folder gets generator.safetensors, which holds generator and discriminator and is what gpseg.train takes as
--generator, sample grids, and the training state for --resume."""

if __name__ == "__main__":
    run("gpseg.pretrain", PretrainConfig, pretrain, DESCRIPTION)
