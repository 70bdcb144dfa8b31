"""FID and KID as torch-fidelity computes them; its Inception network is here with random weights only."""

import importlib.util

import numpy as np
import pytest
import torch

from gpseg.errors import InputError
from gpseg.evaluation import fidelity
from gpseg.evaluation.fidelity import Inception, fid, kid

CPU = torch.device("cpu")
installed = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None, reason="needs the extra fid"
)


def features(seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(300, 4, generator=torch.Generator().manual_seed(seed)) + shift


@installed
def test_fid_is_the_frechet_distance():
    a, b = features(0), 2 * features(1, 1.0)
    covariances = [np.cov(x.numpy(), rowvar=False) for x in (a, b)]
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1])).real.sum()
    spread = np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * root
    expected = float((a.mean(0) - b.mean(0)).square().sum()) + spread
    assert fid(a, b) == pytest.approx(expected, rel=1e-4)
    assert fid(a, a) == pytest.approx(0, abs=1e-4)


@installed
def test_kid_is_the_cubic_kernels_unbiased_distance():
    a, b = features(0), features(1, 1.0)

    def kernel(x, y):
        return (x.double() @ y.double().T / 4 + 1) ** 3

    def others(x):
        k = kernel(x, x)
        return float((k.sum() - k.trace()) / (300 * 299))

    expected = others(a) + others(b) - 2 * float(kernel(a, b).mean())
    assert kid(a, b) == pytest.approx(expected, rel=1e-4)


@installed
@pytest.mark.slow
def test_the_network_is_torch_fidelitys_with_the_weights_of_the_file(tmp_path, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    # The weights of the constructor, in place of downloaded ones.
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
    load = torch.nn.Module.load_state_dict
    monkeypatch.setattr(
        torch.nn.Module, "load_state_dict", lambda self, s, **k: load(self, s, strict=bool(s))
    )
    network = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            # With the constructor's own scale all features vanish.
            torch.nn.init.kaiming_normal_(layer.weight)
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    images[1:] //= torch.tensor([2, 8], dtype=torch.uint8).view(2, 1, 1, 1)
    expected = network(images)[0]
    assert expected.std(dim=0).mean() > 0.01
    found = Inception(path, CPU).features(images.split(2))
    assert found.shape == (3, 2048)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@installed
def test_without_weights_it_says_where_they_are_and_downloads_nothing(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download")

    module = "torch_fidelity.feature_extractor_inceptionv3"
    monkeypatch.setattr(f"{module}.load_state_dict_from_url", refuse)
    with pytest.raises(InputError, match=r"download https://\S+\.pth and give it with --inception"):
        Inception(None, CPU)
    with pytest.raises(InputError, match=r"weights\.pth: no such file; download https"):
        Inception(tmp_path / "weights.pth", CPU)


@installed
@pytest.mark.parametrize("content", ["program", "another network", "noise", "nothing"])
def test_other_files_are_refused_and_not_run(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content == "program":
        torch.save(Program(), path)
    elif content == "another network":
        torch.save({"weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(b"noise" if content == "noise" else b"")
    with pytest.raises(InputError, match=r"weights\.pth: not Inception's weights"):
        Inception(path, CPU)


class Program:
    def __reduce__(self):
        return (pytest.fail, ("the file was run",))


def test_without_the_library_it_says_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'torch_fidelity'")

    monkeypatch.setattr(fidelity, "import_module", missing)
    with pytest.raises(InputError, match=r"pip install torch==\S+ 'gpseg\[fid\]'"):
        Inception(None, CPU)
