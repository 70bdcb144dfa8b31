"""Layers with equalised learning rate, on top of `gpseg.ops`."""

from gpseg.nn.layers import Conv2d, FullyConnected, MinibatchStd, ZeroProjection

__all__ = ["Conv2d", "FullyConnected", "MinibatchStd", "ZeroProjection"]
