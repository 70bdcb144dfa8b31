"""What a segmenter must beat on the same labels.

A U-Net that starts from nothing; the plain encoder-decoder that starts from the discriminator; pixel classifiers that read
the frozen generator's features, or the frozen discriminator's. Each trains on a `TrainingSet` in one call, and what comes
back predicts as a `Segmenter` does, by `probabilities`.
"""

from gpseg.evaluation.rivals.encoder_decoder import EncoderDecoder, train_encoder_decoder
from gpseg.evaluation.rivals.pixel_classifier import (
    PixelClassifier,
    train_discriminator_classifier,
    train_pixel_classifier,
)
from gpseg.evaluation.rivals.unet import UNet, train_unet

__all__ = [
    "EncoderDecoder",
    "PixelClassifier",
    "UNet",
    "train_discriminator_classifier",
    "train_encoder_decoder",
    "train_pixel_classifier",
    "train_unet",
]
