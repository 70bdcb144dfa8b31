"""Checkpoints: what comes back, and every way in which a file can be wrong."""

import errno
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import gpseg
from gpseg.errors import InputError, RunError
from gpseg.models.checkpoint import (
    GENERATOR_STAGE,
    load_checkpoint,
    load_generator,
    save_checkpoint,
    save_generator,
    stage_of,
)
from gpseg.models.stylegan2 import NetworkConfig

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.c": torch.ones(2, 2, 3, 3)}


def test_round_trip(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {**TENSORS, "view": TENSORS["a"].t()}
    save_checkpoint(path, tensors, "stage-1", {"resolution": 64, "nested": {"x": [1, None]}})
    loaded, config = load_checkpoint(path, "stage-1")
    assert config == {"resolution": 64, "nested": {"x": [1, None]}}
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name], tensor)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    (tmp_path / "ordinary").touch()
    assert path.stat().st_mode == (tmp_path / "ordinary").stat().st_mode


def test_generator_round_trip(tmp_path):
    network = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
    generator, discriminator = network.generator(), network.discriminator()
    save_generator(
        tmp_path / "g.safetensors", generator, discriminator, network, {"images_seen": 7}
    )
    loaded_g, loaded_d, loaded_network, config = load_generator(tmp_path / "g.safetensors")
    assert loaded_network == network
    assert config["images_seen"] == 7
    z = torch.randn(4, 8)
    images = generator(z, noise_mode="const")
    torch.testing.assert_close(loaded_g(z, noise_mode="const"), images)
    torch.testing.assert_close(loaded_d(images), discriminator(images))


def test_weights_of_another_size(tmp_path):
    small = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
    large = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=256, channel_max=16, mapping_layers=2)
    path = tmp_path / "g.safetensors"
    save_generator(path, small.generator(), small.discriminator(), large)
    with pytest.raises(InputError, match=r"g\.safetensors: its weights don't fit"):
        load_generator(path)


def test_wrong_stage_names_both_stages(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TENSORS, "segmenter", {})
    with pytest.raises(InputError) as raised:
        load_checkpoint(path, GENERATOR_STAGE)
    for part in (str(path), "segmenter", GENERATOR_STAGE, "python -m gpseg.pretrain"):
        assert part in str(raised.value)


def test_stage_is_read_off_the_header(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TENSORS, "segmenter", {})
    assert stage_of(path, GENERATOR_STAGE, "segmenter") == "segmenter"
    with pytest.raises(InputError, match='stage "segmenter", "a" or "b" is needed'):
        stage_of(path, "a", "b")


def test_another_version_is_named_where_its_file_does_not_fit(tmp_path, monkeypatch):
    path = tmp_path / "g.safetensors"
    network = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
    pair = network.generator(), network.discriminator()
    config = {"network": {**asdict(network), "attention": True}}
    named = r"written by gpseg 99\.1 \(this is 0\.1\.0\)"

    with monkeypatch.context() as future:
        future.setattr(gpseg, "__version__", "99.1")
        save_generator(path, *pair, network)
    load_generator(path)  # whatever fits is taken

    with monkeypatch.context() as future:
        future.setattr(gpseg, "__version__", "99.1")
        save_checkpoint(path, {}, GENERATOR_STAGE, config)
    with pytest.raises(InputError, match=f"attention.*{named}; install that version"):
        load_generator(path)

    with monkeypatch.context() as future:
        future.setattr(gpseg, "__version__", "99.1")
        save_checkpoint(path, {}, "video", {})
    with pytest.raises(InputError, match=f'stage "video", {named}'):
        load_generator(path)

    save_checkpoint(path, {}, GENERATOR_STAGE, config)
    with pytest.raises(InputError, match=r"attention.*\); train anew with this version$"):
        load_generator(path)


def test_missing_file_says_what_writes_it(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.safetensors: no such file.*gpseg\.pretrain"):
        load_generator(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
def test_truncated_file(tmp_path, kept):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TENSORS, "stage-1", {})
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(InputError, match=r"x\.safetensors: damaged"):
        load_checkpoint(path, "stage-1")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite(tmp_path, dtype, value):
    path = tmp_path / "g.safetensors"
    network = NetworkConfig(16, z_dim=8, w_dim=8, channel_base=128, channel_max=8, mapping_layers=2)
    generator, discriminator = network.generator().to(dtype), network.discriminator()
    generator.mapping.w_avg[3] = value
    save_generator(path, generator, discriminator, network)
    with pytest.raises(InputError) as raised:
        load_generator(path)
    assert str(raised.value) == (
        f"{path} is damaged: generator.mapping.w_avg is not finite; copy it again or train anew"
    )


def test_another_program_s_file(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    save_file(TENSORS, path)
    with pytest.raises(InputError, match="no gpseg checkpoint"):
        load_checkpoint(path, "stage-1")
    path.write_bytes(b"\x80\x02}q\x00." * 50)
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(path, "stage-1")


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, TENSORS, "stage-1", {"version": 1})

    write = Path.write_bytes

    def write_half(target, content):
        write(target, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(RunError, match=r"x\.safetensors: the disk is full"):
        save_checkpoint(path, TENSORS, "stage-1", {"version": 2})
    assert load_checkpoint(path, "stage-1")[1] == {"version": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
