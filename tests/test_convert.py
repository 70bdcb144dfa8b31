from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from gpseg.commandline import run
from gpseg.data import write_drawn
from gpseg.evaluation.segment import TrainConfig, train_segmenter
from gpseg.models.checkpoint import load_generator
from tests.models.published.files import SMALL, network_pickle, networks, state_dicts, torch_file

Call = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def gpseg_convert(tmp_path: Path, run_command: Call) -> Call:
    """`python -m gpseg.convert` in the folder: its exit code and the lines on stderr."""
    return partial(run_command, tmp_path, "gpseg.convert")


def test_a_network_pickle(tmp_path: Path, gpseg_convert: Call) -> None:
    (tmp_path / "in.pkl").write_bytes(network_pickle())
    code, lines = gpseg_convert("in.pkl", "new/out.safetensors")
    assert code == 0, lines
    generator, discriminator, network, config = load_generator(tmp_path / "new/out.safetensors")
    assert network == SMALL
    assert config["converted_from"]["file"] == "in.pkl"
    assert config["converted_from"]["generator"] == "G_ema"
    expected, judge = networks()
    z = torch.randn(4, SMALL.z_dim)
    with torch.no_grad():
        images = expected(z, noise_mode="const", truncation_psi=0.5)
        found = generator(z, noise_mode="const", truncation_psi=0.5)
        assert torch.equal(found, images)
        assert torch.equal(discriminator(images), judge(images))


def test_a_segmenter_trains_on_what_was_converted(tmp_path: Path, gpseg_convert: Call) -> None:
    (tmp_path / "in.pkl").write_bytes(network_pickle(SMALL))
    assert gpseg_convert("in.pkl", "out.safetensors")[0] == 0
    write_drawn(tmp_path / "faces", 16, labelled=6, unlabelled=2)
    options = {"--data": "faces", "--generator": "out.safetensors", "--out": "run"}
    small = {"--steps": "2", "--shots": "2", "--labelled-batch": "2", "--unlabelled-batch": "2"}
    with pytest.raises(SystemExit) as exit_:
        run(
            *("gpseg.train", TrainConfig, train_segmenter, "Train."),
            [text for option in (options | small).items() for text in option],
        )
    assert exit_.value.code == 0
    assert (tmp_path / "run" / "segmenter.safetensors").is_file()


def test_state_dicts(tmp_path: Path, gpseg_convert: Call) -> None:
    (tmp_path / "in.pt").write_bytes(torch_file(state_dicts()))
    assert gpseg_convert("in.pt", "out.safetensors")[0] == 0
    config = load_generator(tmp_path / "out.safetensors")[3]
    assert config["converted_from"]["format"] == "rosinality state dicts"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("nothing.pkl", "out.safetensors"), "nothing.pkl: no such file"),
        (("other.pkl", "out.safetensors"), "other.pkl: it names 'posix.system'"),
        (("cut.pkl", "out.safetensors"), "cut.pkl: damaged (no whole pickle)"),
        (("in.pkl", "out.pkl"), "out.pkl: no such conversion; there are .pkl to .safetensors"),
    ],
)
def test_what_goes_wrong_is_one_line_and_exit_code_2(
    tmp_path: Path, gpseg_convert: Call, args: tuple[str, str], message: str
) -> None:
    (tmp_path / "in.pkl").write_bytes(network_pickle())
    (tmp_path / "cut.pkl").write_bytes(network_pickle()[:-1000])
    (tmp_path / "other.pkl").write_bytes(
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."
    )
    code, lines = gpseg_convert(*args)
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]
    assert not list(tmp_path.glob("out*"))
