"""Read files that torch.save wrote, of either format.

`torch.load(weights_only=True)` runs nothing, but it believes sizes: a file of a kilobyte may ask for a terabyte. So each
file is first read for its sizes alone, by a reader that makes nothing.
"""

import argparse
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch

from gpseg.errors import InputError
from gpseg.models.published.unpickling import (
    Budget,
    Make,
    Name,
    Record,
    damaged,
    no_arguments,
    read_pickle,
)

_ARCHIVE = b"PK\x03\x04"
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""A pickle of the number that starts the format before torch 1.6, and that of tensors inside pickles until today."""

_MAX_RECORDS = 20_000
_DIRECTORY_ENTRY = b"PK\x01\x02"

_ITEM_SIZES = {
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
}


def is_torch_file(content: bytes) -> bool:
    """Tell whether a file starts as those of torch.save do."""
    return content.startswith((_ARCHIVE, _LEGACY))


def read_torch_file(content: bytes, budget: Budget) -> Any:
    """Read a file of tensors, numbers, texts and containers of these.

    Args:
        content: the whole file.
        budget: what this may cost; its storage must have room for the file.

    Returns:
        What was saved, on the CPU. The options of a training run (an argparse.Namespace) may be among it.

    Raises:
        InputError: if the file is damaged, names anything else, or asks for more memory than its own size.
    """
    budget.spend_storage(len(content))
    if content.startswith(_ARCHIVE):
        _check_archive(content, budget)
    elif content.startswith(_LEGACY):
        _check_legacy(content, budget)
    else:
        raise damaged("no torch file")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols, which read_pickle has looked at
            return torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch documents none, and raises what its parts do
        raise damaged("torch can't read it") from error


def fits(numel: int, offset: Any, size: Any, stride: Any) -> bool:
    """Tell whether a tensor lies within its storage, and names no element of it so often that it is larger.

    Args:
        numel: elements of the storage.
        offset: its first element.
        size: its shape.
        stride: its strides, in elements.
    """
    if type(offset) is not int or not (_is_shape(size) and _is_shape(stride)):
        return False
    if offset < 0 or len(size) != len(stride):
        return False
    elements = 1
    for n in size:
        elements *= n
        if elements > numel:
            return False
    if elements == 0:
        return offset <= numel
    return offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) < numel


def _is_shape(value: Any) -> bool:
    return (
        type(value) is tuple
        and len(value) <= 8
        and all(type(n) is int and 0 <= n < 2**40 for n in value)
    )


@dataclass(frozen=True)
class _Storage:
    numel: int
    itemsize: int


class _Tensor:
    """Stands for a tensor that fits its storage."""


class _Sizes:
    """What a torch file's pickle says of its storages."""

    def __init__(self, legacy: bool) -> None:
        self.end = (None,) if legacy else ()  # which view of another storage it is: none
        self.storages: dict[str, _Storage] = {}
        self.names: dict[str, Make] = {
            "collections OrderedDict": no_arguments(Record),
            "argparse Namespace": no_arguments(Record),
            "torch._utils _rebuild_tensor_v2": self.tensor,
            "torch._utils _rebuild_parameter": self.parameter,
            **dict.fromkeys(_ITEM_SIZES, _not_to_be_called),
        }

    def storage(self, arguments: tuple[Any, ...]) -> _Storage | None:
        match arguments:
            case ("storage", Name(name=name), str(key), str(), int(numel), *end) if (
                name in _ITEM_SIZES and numel >= 0 and tuple(end) == self.end
            ):
                storage = _Storage(numel, _ITEM_SIZES[name])
                return storage if self.storages.setdefault(key, storage) == storage else None
        return None

    def tensor(self, arguments: tuple[Any, ...]) -> _Tensor | None:
        match arguments:
            case (_Storage(numel=numel), offset, size, stride, bool(), Record()):
                return _Tensor() if fits(numel, offset, size, stride) else None
        return None

    def parameter(self, arguments: tuple[Any, ...]) -> _Tensor | None:
        match arguments:
            case (_Tensor() as tensor, bool(), Record()):
                return tensor
        return None

    def read(self, stream: BytesIO, budget: Budget) -> None:
        read_pickle(stream, self.names, budget, self.storage)


def _not_to_be_called(arguments: tuple[Any, ...]) -> None:
    return None


def _check_legacy(content: bytes, budget: Budget) -> None:
    stream = BytesIO(content)
    sizes = _Sizes(legacy=True)
    for _ in range(3):  # magic number, version, the machine's sizes of types
        read_pickle(stream, {}, budget)
    sizes.read(stream, budget)
    keys = read_pickle(stream, {}, budget)
    needed = sum(8 + s.numel * s.itemsize for s in sizes.storages.values())
    if not _same(keys, sizes.storages) or needed > len(content) - stream.tell():
        raise damaged("its tensors are not all there")


def _same(keys: Any, storages: dict[str, _Storage]) -> bool:
    return (
        isinstance(keys, list)
        and len(keys) == len(storages)
        and all(type(key) is str and key in storages for key in keys)
    )


def _check_archive(content: bytes, budget: Budget) -> None:
    if content.count(_DIRECTORY_ENTRY) > _MAX_RECORDS:
        raise InputError("more records than any checkpoint has; don't use it")
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            records = archive.infolist()
            _check_records(records, len(content))
            folder = records[0].filename.split("/")[0]
            pickled = archive.read(f"{folder}/data.pkl")
    except InputError:
        raise
    except Exception as error:  # zipfile documents one, and raises what its parts do
        raise damaged("no whole zip archive") from error
    sizes = _Sizes(legacy=False)
    sizes.read(BytesIO(pickled), budget)
    found = {record.filename: record.file_size for record in records}
    for key, storage in sizes.storages.items():
        if found.get(f"{folder}/data/{key}") != storage.numel * storage.itemsize:
            raise damaged("its tensors are not all there")


def _check_records(records: Sequence[zipfile.ZipInfo], size: int) -> None:
    """torch stores, it never compresses: so what is unpacked can't be larger than the file."""
    if any(
        record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 for record in records
    ):
        raise InputError("compressed records, which torch never writes; don't use it")
    if not records or len({record.filename for record in records}) != len(records):
        raise damaged("records of one name")
    if sum(record.file_size for record in records) > size:
        raise InputError("it unpacks to more than its own size; no checkpoint does, don't use it")
