"""Data sets of part masks in folders, augmentation, and the drawn data set."""

from gpseg.data.ahead import batches_ahead, made_ahead
from gpseg.data.augment import PairAugment, PairChange, diff_augment
from gpseg.data.classes import Classes, PartClass, fit_mask
from gpseg.data.drawn import DRAWN_CLASSES, draw_face, write_drawn
from gpseg.data.folder import PartFolder, Splits
from gpseg.data.images import (
    Placement,
    fit_square,
    load_images,
    read_image,
    read_square,
)
from gpseg.data.mixing import color_parts, half_the_parts, take_colors
from gpseg.data.packed import UnlabelledImages, fingerprint
from gpseg.data.reading import Reading
from gpseg.data.sources import ImageSource, images_in, training_images

__all__ = [
    "DRAWN_CLASSES",
    "Classes",
    "ImageSource",
    "PairAugment",
    "PairChange",
    "PartClass",
    "PartFolder",
    "Placement",
    "Reading",
    "Splits",
    "UnlabelledImages",
    "batches_ahead",
    "color_parts",
    "diff_augment",
    "draw_face",
    "fingerprint",
    "fit_mask",
    "fit_square",
    "half_the_parts",
    "images_in",
    "load_images",
    "made_ahead",
    "read_image",
    "read_square",
    "take_colors",
    "training_images",
    "write_drawn",
]
