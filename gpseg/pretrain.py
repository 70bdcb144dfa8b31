"""`python -m gpseg.pretrain`: from unlabelled images to a generator and its discriminator."""

from gpseg.commandline import run
from gpseg.training.pretrain import pretrain
from gpseg.training.pretrain_config import PretrainConfig, preset_table

DESCRIPTION = """Pre-train an image generator (StyleGAN2) on unlabelled images of one class.

The run folder gets generator.safetensors, which holds generator and discriminator and is what gpseg.train takes as
--generator, sample grids, and the training state for --resume.

"torchrun --nproc-per-node N -m gpseg.pretrain ..." shares every batch among N processes, one for each GPU.

What --preset fills in, for a small machine (-cpu) and with the published sizes (-gpu):

"""

if __name__ == "__main__":
    run("gpseg.pretrain", PretrainConfig, pretrain, DESCRIPTION + preset_table())
