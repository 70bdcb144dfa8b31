"""Network pickles: their modules, and malicious content in every place of one."""

import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from gpseg.errors import InputError
from gpseg.models.published.networks import networks_in
from gpseg.models.published.snapshot import read_snapshot
from tests.models.published.files import (
    SMALL,
    Calls,
    Part,
    easy_dict,
    network_pickle,
    networks,
    pickled,
    snapshot_parts,
    torch_file,
)
from tests.models.published.test_torch_file import rewritten


def test_modules_and_their_plain_attributes():
    part = Part(
        "Layer",
        gain=np.float64(0.25),
        small=np.float32(0.5),
        count=np.int64(-7),
        flag=np.bool_(True),
        options=easy_dict(a=1),
        _parameters={"weight": torch.nn.Parameter(torch.ones(2)), "bias": None},
        _buffers={"mean": torch.zeros(3)},
        _modules={"none": None, "below": Part("Below", _buffers={"x": torch.ones(1)})},
    )
    module = read_snapshot(pickled({"G": part, "other": 1}))["G"]
    assert module.class_name == "Layer"
    values = [module.state[name] for name in ("gain", "small", "count", "flag", "options")]
    assert values == [0.25, 0.5, -7, True, {"a": 1}]
    assert {name: t.tolist() for name, t in module.tensors().items()} == {
        "weight": [1, 1],
        "mean": [0, 0, 0],
        "below.x": [1],
    }


@pytest.mark.parametrize(
    "value",
    [np.ones(2), np.datetime64("2020-01-01"), np.str_("a"), np.dtype("O"), np.dtype(">f8"), 1j],
    ids=str,
)
def test_other_values_of_numpy(value):
    with pytest.raises(InputError):
        read_snapshot(pickled({"G": Part("Layer", value=value)}))


def test_source_text_is_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = "open('ran', 'w').close()\nraise SystemExit"
    networks_in(network_pickle(module_src=source))
    assert not list(tmp_path.iterdir())


EVIL = Calls(os.system, "touch ran")


class StorageBytes:
    """A tensor whose nested file is as given."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def __reduce__(self):
        storage = Calls(torch.storage._load_from_bytes, self.content)
        hooks = collections.OrderedDict()
        return torch._utils._rebuild_tensor_v2, (storage, 0, (1,), (1,), False, hooks)


BOMB = rewritten(
    torch_file(torch.ones(5)),
    lambda name, record: bytes(50_000_000) if "data/0" in name else record,
    compression=zipfile.ZIP_DEFLATED,
)


@pytest.mark.parametrize(
    ("evil", "message"),
    [
        (EVIL, "posix.system"),
        (Part("X", a=EVIL), "posix.system"),
        (StorageBytes(pickle.dumps(EVIL)), "no torch file"),
        (StorageBytes(torch_file(EVIL)), "posix.system"),
        (StorageBytes(torch_file(EVIL, legacy=True)), "posix.system"),
        (StorageBytes(torch_file({"a": [EVIL]}, legacy=True)), "posix.system"),
        (StorageBytes(BOMB), "compressed records"),
        (
            StorageBytes(torch_file(torch.ones(3), legacy=True)),
            "unusual arguments of torch.storage",
        ),
        (StorageBytes(b""), "no torch file"),
    ],
    ids=["call", "state", "pickle", "zip", "legacy", "deeper", "bomb", "tensor", "empty"],
)
@pytest.mark.parametrize("place", ["top", "argument", "weight", "augment"])
def test_malicious_content_in_every_place(tmp_path, monkeypatch, evil, message, place):
    monkeypatch.chdir(tmp_path)
    parts = snapshot_parts(*networks(), SMALL)
    if place == "top":
        parts["more"] = evil
    elif place == "argument":
        parts["training_set_kwargs"]["path"] = evil
    elif place == "weight":
        parts["G_ema"].state["_parameters"] = {"weight": evil}
    else:
        parts["augment_pipe"].state["_buffers"]["x"] = evil
    with pytest.raises(InputError, match=message):
        networks_in(pickled(parts))
    assert not list(tmp_path.iterdir())


def test_one_storage_loaded_ten_thousand_times():
    nested = torch.zeros(100_000).__reduce_ex__(4)[1][0].__reduce__()[1][0]
    call = Calls(torch.storage._load_from_bytes, nested)
    content = pickle.dumps([Calls(torch.storage._load_from_bytes, nested) for _ in range(1000)], 4)
    assert len(content) < 2 * len(pickle.dumps(call, 4))
    with pytest.raises(InputError, match="more than its own size"):
        read_snapshot(content)


@pytest.mark.parametrize(
    "meta",
    [
        {"type": "function", "class_name": "X", "state": {}},
        {"type": "class", "class_name": 5, "state": {}},
        {"type": "class", "class_name": "X", "state": None},
        {"type": "class", "class_name": "X"},
        {"type": torch.ones(2), "class_name": "X", "state": {}},
    ],
    ids=["function", "number", "stateless", "short", "tensor"],
)
def test_persistent_objects_of_another_form(meta):
    from tests.models.published import files

    with files._their_modules(False):
        content = pickle.dumps({"G": Calls(files._reconstruct_persistent_obj, meta)}, 4)
    with pytest.raises(InputError, match="unusual arguments"):
        read_snapshot(content)


def test_a_tensorflow_pickle_is_refused_by_name():
    content = b"\x80\x03cdnnlib.tflib.network\nNetwork\nq\x00)\x81q\x01."
    with pytest.raises(InputError, match=r"dnnlib\.tflib\.network\.Network"):
        read_snapshot(content)
