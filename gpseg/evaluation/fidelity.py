"""FID and KID by torch-fidelity, where the user has the weights of its Inception network (the extra `fid`).

Heusel et al., *GANs Trained by a Two Time-Scale Update Rule*, NeurIPS 2017; Bińkowski et al., *Demystifying MMD GANs*,
ICLR 2018. Nothing is ever downloaded: torch-fidelity would, if it were not given a file.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpseg.errors import InputError

_NETWORK, _LAYER = "inception-v3-compat", "2048"
_KID_SUBSET = 1000


class Inception:
    """The network in whose features FID and KID are defined.

    Args:
        weights: torch-fidelity's file of weights.
        device: where to compute.

    Raises:
        InputError: torch-fidelity or the weights are missing, or the file holds something else.
    """

    def __init__(self, weights: Path | None, device: torch.device) -> None:
        url = _fidelity("feature_extractor_inceptionv3").URL_INCEPTION_V3
        if weights is None:
            raise InputError(
                f"fid and kid need Inception's weights: download {url} and give it with --inception"
            )
        if not weights.is_file():
            raise InputError(
                f"{weights}: no such file; download {url} and give it with --inception"
            )
        try:
            # torch-fidelity unpickles whatever the file holds; this refuses anything but tensors.
            torch.load(weights, map_location="cpu", weights_only=True)
            self._network = _fidelity("utils").create_feature_extractor(
                _NETWORK,
                [_LAYER],
                cuda=False,
                verbose=False,
                feature_extractor_weights_path=str(weights),
            )
        except (RuntimeError, ValueError, EOFError, TypeError, pickle.UnpicklingError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else "damaged"
            raise InputError(
                f"{weights}: not Inception's weights as torch-fidelity has them ({reason}); download {url}"
            ) from error
        self._network.to(device)
        self._device = device

    @torch.no_grad()
    def features(self, batches: Iterable[Tensor]) -> Tensor:
        """Features [N, 2048] (float32, on the CPU) of images, uint8 batches [n, 3, r, r]."""
        return torch.cat([self._network(batch.to(self._device))[0].cpu() for batch in batches])


def fid(reals: Tensor, fakes: Tensor) -> float:
    """Fréchet distance of two sets of features [N, d]; the fewer images, the more it is too large."""
    metric = _fidelity("metric_fid")
    statistics = (metric.fid_features_to_statistics(features) for features in (reals, fakes))
    values = metric.fid_statistics_to_metric(*statistics, verbose=False)
    return float(values[metric.KEY_METRIC_FID])


def kid(reals: Tensor, fakes: Tensor) -> float:
    """Kernel distance of two sets of features [N, d], unbiased, the mean over subsets of up to 1000 images."""
    metric = _fidelity("metric_kid")
    size = min(_KID_SUBSET, len(reals), len(fakes))
    values = metric.kid_features_to_metric(reals, fakes, kid_subset_size=size, verbose=False)
    return float(values[metric.KEY_METRIC_KID_MEAN])


def _fidelity(module: str) -> Any:
    try:
        return import_module(f"torch_fidelity.{module}")
    except ImportError as error:
        raise InputError(
            f"fid and kid need torch-fidelity ({error}): pip install torch=={torch.__version__.split('+')[0]} "
            "'gpseg[fid]'"
        ) from error
