"""Files of torch.save: what comes back, and sizes that are not what they say."""

import argparse
import collections
import io
import os
import pickle
import zipfile

import pytest
import torch

from gpseg.errors import InputError
from gpseg.models.published.torch_file import fits, is_torch_file, read_torch_file
from gpseg.models.published.unpickling import Budget
from tests.models.published.files import Calls, torch_file

DATA = {
    "g": collections.OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.ones(2).half()),
    "parameter": torch.nn.Parameter(torch.ones(2, 2).t()),
    "module": torch.nn.Linear(2, 3).state_dict(),
    "part": torch.arange(10)[3:7:2],
    "steps": [torch.tensor(3.0), torch.tensor([], dtype=torch.bfloat16), 5, "text", None],
}


def read(content: bytes):
    return read_torch_file(content, Budget(storage=len(content)))


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_come_back(legacy):
    content = torch_file(DATA, legacy=legacy)
    assert is_torch_file(content)
    found = read(content)
    assert found.keys() == DATA.keys()
    for group in ("g", "module"):
        for name, tensor in DATA[group].items():
            assert torch.equal(found[group][name], tensor)
            assert found[group][name].dtype == tensor.dtype
    for name in ("parameter", "part"):
        assert torch.equal(found[name], DATA[name])
    assert found["steps"][2:] == [5, "text", None]
    assert found["steps"][1].dtype == torch.bfloat16


@pytest.mark.filterwarnings("error")
def test_another_protocol_is_no_reason_to_warn():
    content = rewritten(
        SMALL,
        lambda name, record: (
            record.replace(b"\x80\x02", b"\x80\x04") if name.endswith("data.pkl") else record
        ),
    )
    assert torch.equal(read(content)["a"], torch.ones(5))


def test_options_of_a_run_come_back():
    found = read(torch_file({"args": argparse.Namespace(size=16)}))
    assert found["args"].size == 16


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("data", "name"),
    [
        (Calls(os.system, "true"), "posix.system"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        (torch.ones(2, device="meta"), "torch._utils._rebuild_meta_tensor_no_storage"),
        (torch.ones(2).to_sparse(), "torch._utils._rebuild_sparse_tensor"),
    ],
    ids=["call", "module", "meta", "sparse"],
)
def test_other_names_are_refused(data, name, legacy):
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        read(torch_file({"a": data}, legacy=legacy))


def rewritten(content: bytes, change, **how) -> bytes:
    """An archive with each record as `change(name, content)` gives it; None leaves it out."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", **how) as new:
        for name in old.namelist():
            record = change(name, old.read(name))
            if record is not None:
                new.writestr(name, record)
    return stream.getvalue()


SMALL = torch_file({"a": torch.ones(5)})


def test_a_zip_bomb_is_not_inflated():
    content = rewritten(
        SMALL,
        lambda name, record: bytes(50_000_000) if name.endswith("/data/0") else record,
        compression=zipfile.ZIP_DEFLATED,
    )
    assert len(content) < 100_000
    with pytest.raises(InputError, match="compressed records, which torch never writes"):
        read(content)


def test_records_in_one_another_s_place():
    """Two entries of the directory for one record: more is unpacked than there is."""
    entry = SMALL.index(b"PK\x01\x02")
    size = len(SMALL)
    overlapping = bytearray(SMALL)
    position = overlapping.index(b"archive/data/0", entry) - 46
    overlapping[position + 20 : position + 28] = (10 * size).to_bytes(4, "little") * 2
    with pytest.raises(InputError):
        read(bytes(overlapping))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, record: None if name.endswith("/data/0") else record, "not all there"),
        (lambda name, record: record[:8] if name.endswith("/data/0") else record, "not all there"),
        (lambda name, record: None if name.endswith("data.pkl") else record, "no whole zip"),
        (lambda name, record: None, "damaged"),
        (lambda name, record: b"" if name.endswith("data.pkl") else record, "no whole pickle"),
    ],
)
def test_records_that_are_missing_or_short(change, message):
    with pytest.raises(InputError, match=message):
        read(rewritten(SMALL, change))


def test_hundred_thousand_records():
    with pytest.raises(InputError, match="more records"):
        read(SMALL + b"PK\x01\x02" * 100_000)


def claiming(numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A file of five numbers whose pickle says something else of them."""

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                Storage(),
                offset,
                size,
                stride,
                False,
                collections.OrderedDict(),
            )

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            if isinstance(obj, Storage):
                return ("storage", torch.FloatStorage, "0", "cpu", numel)
            return None

    stream = io.BytesIO()
    Pickler(stream, 2).dump({"a": Tensor()})
    return rewritten(
        SMALL, lambda name, record: stream.getvalue() if name.endswith("data.pkl") else record
    )


@pytest.mark.parametrize(
    ("numel", "size", "stride", "offset"),
    [
        (10**12, (10**12,), (1,), 0),
        (6, (6,), (1,), 0),
        (4, (4,), (1,), 0),
        (-5, (5,), (1,), 0),
        (5, (10**12,), (0,), 0),
        (5, (6,), (1,), 0),
        (5, (5,), (1,), 1),
        (5, (5,), (1,), -1),
        (5, (2,), (5,), 0),
        (5, (5,), (-1,), 4),
        (5, (-5,), (1,), 0),
        (5, (5,), (1, 1), 0),
        (5, (0,), (2**62,), 0),
        (5, (2**40, 2**40), (0, 0), 0),
    ],
)
def test_tensors_that_reach_beyond_their_memory(numel, size, stride, offset):
    with pytest.raises(InputError, match="damaged"):
        read(claiming(numel, size, stride, offset))


def test_the_claims_of_an_honest_file():
    assert torch.equal(read(claiming(5, (2, 2), (2, 1), 1))["a"], torch.ones(2, 2))


def test_fits():
    assert fits(6, 0, (2, 3), (1, 2))
    assert fits(1, 0, (), ())
    assert fits(5, 5, (0,), (1,))
    assert not fits(0, 0, (), ())
    assert not fits(5, True, (1,), (1,))
    assert not fits(5, 0, [5], [1])
    assert not fits(2, 0, (1,) * 9, (1,) * 9)


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncation_is_refused(legacy):
    content = torch_file(DATA, legacy=legacy)
    for cut in range(1, len(content), 17):
        with pytest.raises(InputError):
            read(content[:-cut])


def test_a_legacy_file_that_claims_terabytes():
    content = torch_file({"a": torch.ones(5)}, legacy=True)
    for old in (b"K\x05N", b"K\x05\x85"):  # elements of the storage, shape of the tensor
        assert content.count(old) == 1
        content = content.replace(old, b"\x8a\x05\x00\x00\x00\x00\x10" + old[2:])
    with pytest.raises(InputError, match="not all there"):
        read(content)


def test_one_file_many_times_in_another():
    """Sixteen bytes of pickle load the same nested file once more each."""
    budget = Budget(storage=3 * len(SMALL))
    for _ in range(3):
        read_torch_file(SMALL, budget)
    with pytest.raises(InputError, match="more than its own size"):
        read_torch_file(SMALL, budget)
