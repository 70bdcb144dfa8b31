"""`python -m gpseg.predict`: from images to part masks."""

from gpseg.commandline import run
from gpseg.evaluation.prediction import PredictConfig, predict

DESCRIPTION = """Write part masks for images, with a segmenter that gpseg.train made.

Images may be of any size and mode (grey, transparent, EXIF-rotated, 16-bit, ...). Each mask is an
indexed PNG of the image's own size, as displayed; pixel values are class ids, and the palette
holds the classes' colours. An image that can't be read is reported and left out, and the exit code
is then 1."""

if __name__ == "__main__":
    run("gpseg.predict", PredictConfig, predict, DESCRIPTION)
