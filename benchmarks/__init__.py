"""Speed of gpseg's operators against the usual composition of PyTorch calls."""
