"""Few-shot part segmentation from an image generator, and StyleGAN's operators under it."""

__version__ = "0.1.0"
