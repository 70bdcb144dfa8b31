"""Published files become the networks that they hold, or one sentence that says why not."""

import hashlib

import numpy as np
import pytest
import torch

from gpseg.errors import InputError
from gpseg.models.published import snapshot
from gpseg.models.published.networks import network_of, networks_in, read_published
from gpseg.models.stylegan2 import NetworkConfig
from tests.models.published.files import (
    SMALL,
    Part,
    network_pickle,
    networks,
    pickled,
    snapshot_parts,
    state_dicts,
    torch_file,
)


def assert_same_networks(found, generator, discriminator):
    z = torch.randn(4, generator.z_dim)
    with torch.no_grad():
        images = generator(z, noise_mode="const", truncation_psi=0.7)
        assert torch.equal(found.generator(z, noise_mode="const", truncation_psi=0.7), images)
        assert torch.equal(found.discriminator(images), discriminator(images))


@pytest.mark.parametrize("old_numpy", [False, True])
@pytest.mark.parametrize(
    "network",
    [
        SMALL,
        NetworkConfig(32, z_dim=5, w_dim=4, channel_base=96, channel_max=8, mapping_layers=1),
        NetworkConfig(
            16,
            z_dim=4,
            w_dim=4,
            channel_base=64,
            channel_max=4,
            mapping_layers=8,
            conv_clamp=0.5,
            mbstd_group_size=2,
        ),
    ],
    ids=["small", "wider-below", "clamped"],
)
def test_a_snapshot_gives_the_networks_it_was_made_of(network, old_numpy):
    generator, discriminator = networks(network)
    parts = snapshot_parts(generator, discriminator, network)
    found = networks_in(pickled(parts, old_numpy=old_numpy))
    assert found.network == network
    assert_same_networks(found, generator, discriminator)


def test_where_channels_say_little_the_file_s_own_arguments_are_no_contradiction():
    network = NetworkConfig(
        16, z_dim=4, w_dim=4, channel_base=4096, channel_max=4, mapping_layers=1
    )
    found = networks_in(network_pickle(network))
    assert (found.network.channel_base, found.network.channel_max) == (4 * 16, 4)
    assert_same_networks(found, *networks(network))


def test_arguments_of_the_stylegan3_repository_stand_side_by_side():
    parts = snapshot_parts(*networks(), SMALL)
    arguments = parts["G"].state["_init_kwargs"]
    arguments.update(arguments.pop("synthesis_kwargs"), fused_modconv_default="inference_only")
    assert_same_networks(networks_in(pickled(parts)), *networks())
    arguments["channel_max"] = 4
    with pytest.raises(
        InputError, match=r"Generator says channel_base 64, channel_max 4, its.* 8 channels at 4 px"
    ):
        networks_in(pickled(parts))


def test_the_running_mean_is_taken_where_there_is_one():
    other = snapshot_parts(*networks(seed=1), SMALL)
    found = networks_in(network_pickle(G_ema=other["G_ema"]))
    assert_same_networks(found, networks(seed=1)[0], networks()[1])
    assert found.origin["generator"] == "G_ema"
    found = networks_in(network_pickle(G_ema=None))
    assert_same_networks(found, *networks())
    assert found.origin["generator"] == "G"
    stored = state_dicts()
    del stored["g_ema"]
    assert networks_in(torch_file(stored)).origin["generator"] == "g"


def test_layers_that_were_frozen_in_training():
    parts = snapshot_parts(*networks(), SMALL)
    layer = parts["D"].state["_modules"]["b16"].state["_modules"]["conv0"].state
    layer["_buffers"] |= layer["_parameters"]
    layer["_parameters"] = {}
    assert_same_networks(networks_in(pickled(parts)), *networks())


def test_weights_in_another_order_in_memory():
    parts = snapshot_parts(*networks(), SMALL)
    layer = parts["G_ema"].state["_modules"]["synthesis"].state["_modules"]["b8"].state["_modules"]
    weight = layer["conv1"].state["_parameters"]["weight"]
    layer["conv1"].state["_parameters"]["weight"] = torch.nn.Parameter(
        weight.detach().permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    )
    assert_same_networks(networks_in(pickled(parts)), *networks())


def test_where_it_came_from_is_told(tmp_path):
    path = tmp_path / "a b.pkl"
    path.write_bytes(network_pickle())
    assert read_published(path).origin == {
        "format": "StyleGAN2 network pickle",
        "generator": "G_ema",
        "file": "a b.pkl",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }


def test_options_and_optimisers_beside_the_state_dicts():
    import argparse

    stored = state_dicts()
    del stored["latent_avg"]
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    more = {
        "args": argparse.Namespace(size=16, latent=8, path="x"),
        "g_optim": optimizer.state_dict(),
        "ada_aug_p": 0.2,
    }
    found = networks_in(torch_file(stored | more))
    z = torch.randn(20_000, 8)
    with torch.no_grad():
        w = found.generator.mapping(z)[:, 0]
    torch.testing.assert_close(
        found.generator.mapping.w_avg, w.mean(dim=0), rtol=0, atol=0.05 * float(w.std())
    )
    assert "10000" in found.origin["w_avg"]


def changed(**changes):
    """The small snapshot after changes to modules, given as "G.path.to.module" and its attributes."""
    parts = snapshot_parts(*networks(), SMALL)
    parts["G"] = snapshot_parts(*networks(), SMALL)["G"]
    for path, state in changes.items():
        module, *names = path.split("__")
        module = parts[module]
        for name in names:
            module = module.state["_modules"][name]
        for name, value in state.items():
            if name.startswith("_") and isinstance(value, dict):
                module.state[name] = {**module.state[name], **value}
                module.state[name] = {k: v for k, v in module.state[name].items() if v != "gone"}
            else:
                module.state[name] = value
    return pickled(parts)


def init(**arguments):
    return {"_init_kwargs": arguments}


G, D = "G_ema", "D"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({G: {"c_dim": 10}}, r"class-conditional \(c_dim 10\)"),
        ({D: {"c_dim": 10}}, r"class-conditional \(c_dim 10\)"),
        ({G: init(c_dim=10)}, "Generator says c_dim 10, its weights have 0"),
        ({G: init(z_dim=7)}, "Generator says z_dim 7, its weights have 6"),
        ({G: init(w_dim=512)}, "Generator says w_dim 512, its weights have 8"),
        ({G: init(img_resolution=32)}, "says img_resolution 32, its weights have 16"),
        ({D: init(img_resolution=32)}, "Discriminator says img_resolution 32"),
        ({G: init(mapping_kwargs={"num_layers": 8})}, "says num_layers 8, its weights have 2"),
        ({G: init(synthesis_kwargs={"channel_base": 32})}, "4 px|8 px"),
        ({D: init(channel_base="64")}, "Discriminator says channel_base '64'"),
        ({D: init(conv_clamp=256)}, "Discriminator says conv_clamp 256, its weights have None"),
        ({D: init(epilogue_kwargs={"mbstd_group_size": 8})}, "says mbstd_group_size 8, .* 4"),
        ({G: {"_init_args": (512, 0)}}, "arguments that have no names"),
        ({G: {"z_dim": 7}}, "Generator: the network has z_dim 7, gpseg's has 6"),
        ({f"{G}__synthesis__b8": {"architecture": "resnet"}}, "Generator of architecture 'resnet'"),
        ({f"{D}__b16": {"architecture": "orig"}}, "Discriminator of architecture 'orig'"),
        ({f"{D}__b4__mbstd": {"group_size": None}}, "over groups of None"),
        ({f"{D}__b4__mbstd": {"num_channels": 2}}, "b4.mbstd has num_channels 2"),
        ({f"{D}__b4__conv": {"conv_clamp": 256}}, "b4.conv has conv_clamp 256"),
        ({f"{G}__synthesis__b4__conv1": {"conv_clamp": -1}}, "conv_clamp -1"),
        ({f"{G}__synthesis__b4__conv1": {"use_noise": False}}, "use_noise False"),
        ({f"{G}__synthesis__b8__conv1": {"activation": "relu"}}, "activation 'relu'"),
        ({f"{G}__synthesis__b8__torgb": {"weight_gain": np.float64(0.5)}}, "weight_gain 0.5"),
        ({f"{G}__mapping__fc0": {"bias_gain": 1}}, "mapping.fc0 has bias_gain 1"),
        (
            {
                f"{G}__synthesis__b8__conv0": {
                    "_buffers": {"resample_filter": torch.ones(4, 4) / 16}
                }
            },
            r"'synthesis.b8.conv0.resample_filter' is not \[1, 3, 3, 1\]",
        ),
        (
            {f"{D}__b16": {"_buffers": {"resample_filter": torch.ones(6, 6) / 36}}},
            r"'b16.resample_filter' is not \[1, 3, 3, 1\]",
        ),
        (
            {f"{G}__mapping": {"_buffers": {"w_avg": "gone"}}},
            "generator: no weight mapping.w_avg",
        ),
        (
            {f"{G}__mapping": {"_buffers": {"w_avg": torch.full([8], torch.nan)}}},
            "generator: 'mapping.w_avg' is not finite",
        ),
        (
            {f"{G}__mapping": {"_buffers": {"w_avg": torch.ones(8, dtype=torch.int64)}}},
            "generator: 'mapping.w_avg' is not finite",
        ),
        ({f"{G}__mapping": {"_buffers": {"w_avg": torch.ones(9)}}}, r"\[9\], \[8\] is needed"),
        ({f"{G}__mapping": {"_buffers": {"w_avg": 1}}}, "'w_avg' is no tensor"),
        ({f"{G}__mapping": {"_buffers": {"more": torch.ones(1)}}}, "a weight 'mapping.more'"),
        (
            {
                f"{G}__mapping": {
                    "_modules": {
                        "embed": Part(
                            "FullyConnectedLayer", _parameters={"weight": torch.ones(8, 8)}
                        )
                    }
                }
            },
            "a weight 'mapping.embed.weight'",
        ),
        ({f"{G}__synthesis": {"_modules": {"b16": "gone"}}}, r"synthesis blocks of \[4, 8\] px"),
        ({f"{G}__synthesis": {"_modules": {"b8": "gone"}}}, r"synthesis blocks of \[4, 16\] px"),
        ({f"{D}": {"_modules": {"b8": "gone"}}}, "discriminator: no weight b8.conv0.weight"),
        (
            {f"{G}__synthesis": {"_modules": {"input": Part("SynthesisInput")}}},
            "a StyleGAN3 generator",
        ),
        ({f"{G}__synthesis": {"_modules": {"b8": 5}}}, "'b8' is no module"),
        ({f"{G}__synthesis": {"_modules": []}}, "its _modules are no dictionary"),
        ({f"{G}__synthesis": {"_parameters": {5: torch.ones(1)}}}, "no dictionary by name"),
        (
            {f"{G}__mapping__fc0": {"_parameters": {"weight": torch.ones(3)}}},
            "mapping.fc0.weight with 2 axes",
        ),
        (
            {
                f"{G}__synthesis__b{r}__torgb": {
                    "_parameters": {"weight": torch.ones(1, r and 8, 1, 1), "bias": torch.ones(1)}
                }
                for r in (4,)
            },
            "images of 1 channels",
        ),
    ],
)
def test_other_networks_are_refused(changes, message):
    with pytest.raises(InputError, match=message) as raised:
        networks_in(changed(**changes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"", "neither a pickle nor a file of torch.save"),
        (lambda: b"\x89PNG", "neither a pickle nor a file of torch.save"),
        (lambda: pickled([1, 2]), "no network snapshot"),
        (lambda: pickled({"G_ema": 1}), "no generator in it"),
        (
            lambda: network_pickle(D=None),
            r"without its discriminator \(D\), which gpseg.train's encoder",
        ),
        (lambda: network_pickle(D=Part("Generator")), "class 'Generator', Discriminator is needed"),
        (
            lambda: network_pickle(G_ema=Part("StyleGAN2Generator")),
            "class 'StyleGAN2Generator', Generator",
        ),
        (lambda: torch_file([1]), "no dictionary of state dicts"),
        (lambda: torch_file({"model": {}}), r"no generator in it \(g_ema or g\)"),
        (lambda: torch_file({"g_ema": {}}), r"without its discriminator \(d\)"),
        (lambda: torch_file({"g_ema": {"a": 1}, "d": {}}), "g_ema is no state dict"),
        (lambda: torch_file({"g_ema": {}, "d": {}, "latent_avg": 3}), "latent_avg is no tensor"),
        (lambda: torch_file({"g_ema": {}, "d": {}}), "no weight mapping.fc0.weight"),
        (
            lambda: torch_file(
                state_dicts()
                | {
                    "d": state_dicts(
                        NetworkConfig(32, z_dim=8, w_dim=8, channel_base=64, channel_max=8)
                    )["d"]
                }
            ),
            "discriminator: a weight 'b32",
        ),
    ],
)
def test_what_is_no_pair_of_networks(content, message):
    with pytest.raises(InputError, match=message):
        networks_in(content())


def test_what_the_file_is_called_stands_first(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.pkl: no such file"):
        read_published(tmp_path / "nothing.pkl")
    path = tmp_path / "x.pkl"
    path.write_bytes(network_pickle(D=None))
    with pytest.raises(InputError, match=r"x\.pkl: a generator \(G_ema\) without"):
        read_published(path)


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "x.pkl"
    with path.open("wb") as file:
        file.truncate(4 * 2**30 + 1)  # takes no space on the disk
    with pytest.raises(InputError, match=r"x\.pkl: larger than 4 GiB"):
        read_published(path)


def test_channels_that_no_rule_gives():
    weights = networks(SMALL)[0].state_dict()
    weights["synthesis.b8.conv1.weight"] = torch.ones(5, 8, 3, 3)
    with pytest.raises(InputError, match=r"channels \{4: 8, 8: 5, 16: 4\} by resolution"):
        network_of(weights, conv_clamp=None, mbstd_group_size=4)


def test_huge_networks_of_one_small_storage():
    """Weights that all lie in the same memory say that the network takes terabytes."""
    weights = networks(SMALL)[0].state_dict() | {"mapping.fc0.weight": torch.ones(5000, 6)}
    with pytest.raises(InputError, match="more than 4096"):
        network_of(weights, conv_clamp=None, mbstd_group_size=4)
    network = NetworkConfig(16, z_dim=64, w_dim=64, channel_base=1024, channel_max=64)
    stored = state_dicts(network)
    shared = torch.zeros(64 * 64 * 9)
    for name, tensor in stored["g_ema"].items():
        if "kernel" not in name:
            stored["g_ema"][name] = shared[: tensor.numel()].view(tensor.shape)
    del stored["g"]
    with pytest.raises(InputError, match="more than its own size"):
        networks_in(torch_file(stored))


@pytest.mark.parametrize("children", [1, 2])
def test_modules_that_hold_themselves(children):
    endless = snapshot.Module("SynthesisBlock", {})
    endless.state["_modules"] = {str(i): endless for i in range(children)}
    with pytest.raises(InputError, match="more modules than any such network has"):
        endless.walk()


def test_one_module_in_place_of_many():
    """Two at each level, the same one: the levels below double each time."""
    module = snapshot.Module(
        "SynthesisLayer", {"_buffers": {str(i): torch.ones(1) for i in range(4000)}}
    )
    pair = snapshot.Module("SynthesisBlock", {"_modules": {"a": module, "b": module}})
    with pytest.raises(InputError, match="more weights than any such network has"):
        pair.tensors()
    for _ in range(60):
        pair = snapshot.Module("SynthesisBlock", {"_modules": {"a": pair, "b": pair}})
    with pytest.raises(InputError, match="more modules than any such network has"):
        pair.walk()
