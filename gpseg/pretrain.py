"""`python -m gpseg.pretrain`: from unlabelled images to a generator and its discriminator."""

from functools import partial

from gpseg.commandline import run
from gpseg.evaluation.progress import write_progress
from gpseg.training.pretrain import pretrain
from gpseg.training.pretrain_config import PretrainConfig, preset_table

DESCRIPTION = """Pre-train an image generator (StyleGAN2) on unlabelled images of one class.

The run folder gets generator.safetensors, which holds generator and discriminator and is what gpseg.train takes as
--generator, sample grids, report.html with images and curves, and the training state for --resume.

"torchrun --nproc-per-node N -m gpseg.pretrain ..." shares every batch among N processes, one for each GPU.

What --preset fills in, for a small machine (-cpu) and with the published sizes (-gpu):

"""

if __name__ == "__main__":
    run(
        "gpseg.pretrain",
        PretrainConfig,
        partial(pretrain, after_snapshot=write_progress),
        DESCRIPTION + preset_table(),
    )
