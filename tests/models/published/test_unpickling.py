"""The reader of pickles: what it gives, and every program that it doesn't run."""

import collections
import io
import os
import pickle
import struct
import subprocess
import time
import tracemalloc

import pytest

from gpseg.errors import InputError
from gpseg.models.published.unpickling import Budget, Record, no_arguments, read_pickle
from tests.models.published.files import Calls

NAMES = {"collections OrderedDict": no_arguments(Record)}


def read(content: bytes, **budget: int):
    return read_pickle(io.BytesIO(content), NAMES, Budget(**budget))


def assemble(*parts) -> bytes:
    """A pickle of protocol 4: bytes as they are, texts and small numbers as the opcodes that push them."""
    content = b"\x80\x04"
    for part in parts:
        if isinstance(part, str):
            content += b"X" + struct.pack("<I", len(part.encode())) + part.encode()
        elif isinstance(part, int):
            content += b"J" + struct.pack("<i", part)
        else:
            content += part
    return content + b"."


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize(
    "value",
    [
        None,
        [True, False, 0, 1, 255, 256, 65536, -1, 2**31, -(2**70), 1.5, float("inf")],
        {"a": (), "b": (1,), "c": (1, 2), "d": (1, 2, 3), "e": (1, 2, 3, 4), 5: [[], {}]},
        ["", "ünï", "x" * 300, "x" * 70000],
        collections.OrderedDict(a=1, b=[2]),
        [[i] for i in range(3000)],
    ],
    ids=["none", "numbers", "containers", "texts", "ordered", "many"],
)
def test_plain_data_comes_back(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("value", [b"", b"abc", b"x" * 70000, {1, 2, "a"}, set()])
def test_bytes_and_sets_of_protocol_4_come_back(value):
    assert read(pickle.dumps(value, 4)) == value


def test_what_was_one_object_stays_one():
    shared = ["a"]
    found = read(pickle.dumps([shared, shared, (shared,)], 4))
    assert found[0] is found[1] is found[2][0]
    endless: list = []
    endless.append(endless)
    found = read(pickle.dumps(endless, 4))
    assert found[0] is found


def test_several_pickles_in_a_row():
    stream = io.BytesIO(pickle.dumps([1], 2) + pickle.dumps({"a": 2}, 4) + b"rest")
    assert read_pickle(stream, {}, Budget()) == [1]
    assert read_pickle(stream, {}, Budget()) == {"a": 2}
    assert stream.read() == b"rest"


@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch ran",), "posix.system"),
        (eval, ("open('ran', 'w')",), "builtins.eval"),
        (exec, ("open('ran', 'w')",), "builtins.exec"),
        (compile, ("open('ran', 'w')", "", "exec"), "builtins.compile"),
        (getattr, (os, "system"), "builtins.getattr"),
        (__import__, ("os",), "builtins.__import__"),
        (open, ("ran", "w"), "io.open|_io.open"),
        (subprocess.Popen, (["touch", "ran"],), "subprocess.Popen"),
        (pickle.loads, (b"",), "_pickle.loads"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("nested", [False, True])
def test_calls_are_refused_by_name(
    tmp_path, monkeypatch, function, arguments, name, protocol, nested
):
    monkeypatch.chdir(tmp_path)
    if function is getattr:
        arguments = ("text", "upper")
    value = Calls(function, *arguments)
    content = pickle.dumps({"a": [value]} if nested else value, protocol, fix_imports=False)
    with pytest.raises(InputError, match=f"it names '({name})'|pickle opcode"):
        read(content)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b"(S'touch ran'\nios\nsystem\n.",
        b"(cos\nsystem\nS'touch ran'\no.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02Pid\n.",
        b"\x80\x02X\x02\x00\x00\x00idQ.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x09touch ran\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)\x81.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93)}\x92.",
        b"\x80\x04\x8c\x0bcollections\x8c\x12OrderedDict.update\x93.",
        b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93.",
        b"\x80\x04\x8c\x17collections OrderedDict\x8c\x00\x93.",
        b"\x80\x05\x96\x04\x00\x00\x00\x00\x00\x00\x00abcd.",
        b"\x80\x05\x97.",
    ],
)
def test_other_ways_to_reach_a_function(content):
    with pytest.raises(InputError, match="don't"):
        read(content)


ORDERED = b"ccollections\nOrderedDict\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (assemble(ORDERED, "a", "b", b"\x86R"), "unusual arguments of collections.OrderedDict"),
        (assemble(ORDERED, b"]R"), "it calls what is no function"),
        (assemble("collections OrderedDict", b")R"), "it calls what is no function"),
        (assemble(1, b")\x81"), "it calls what is no function"),
        (assemble(b"}}b"), "a state for what has none"),
        (assemble("x", b"}b"), "a state for what has none"),
        (assemble(ORDERED, b"}b"), "a state for what has none"),
        (assemble("builtins", 5, b"\x93"), "a name that is no text"),
        (assemble(b"]\x85\x93"), "takes more than it has"),
        (assemble(b"}", b")", "x", b"s"), "a key of type tuple"),
        (assemble(b"}", b"]", "x", b"s"), "a key of type list"),
        (assemble(b"}", b"\x88", "x", b"s"), "a key of type bool"),
        (assemble(b"\x8f(", b")", b"\x90"), "a key of type tuple"),
        (assemble(b"](", "x", b"u"), "no dictionary"),
        (assemble(b"}(", "x", b"u"), "no dictionary"),
        (assemble(b"}", "x", b"a"), "no list"),
        (assemble(b"]}", b"e"), "takes more than it has"),
        (assemble(b"](", b"\x90"), "no set"),
        (assemble(b"h\x05"), "recalls what it never stored"),
        (assemble(b"\x94"), "takes more than it has"),
        (assemble(b"\x85"), "takes more than it has"),
        (assemble(b""), "doesn't end with one object"),
        (assemble(b"]]"), "doesn't end with one object"),
        (assemble(b"(]"), "doesn't end with one object"),
        (b"", "no whole pickle"),
        (b"\x80\x04]", "no whole pickle"),
        (b"\x80\x04\x8c\x10abc.", "no whole pickle"),
        (b"\x80\x04\xff.", "no whole pickle"),
        (b"\x80\x69].", "pickle protocol 105"),
        (b"\x80\x04\x8c\x01\xff.", "no whole pickle"),
    ],
)
def test_programs_that_nobody_writes(content, message):
    with pytest.raises(InputError, match=message):
        read(content)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04]r\xff\xff\xff\x7f.",  # a memo of 2 billion places
        b"\x80\x04]" + b"r\xf0\xff\xff\xff" + b"j\xf0\xff\xff\xff" + b"a.",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc.",  # a text of 8 exabytes
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
        b"\x80\x04X\xff\xff\xff\xffabc.",
        b"\x80\x04B\xff\xff\xff\xffabc.",
        b"\x80\x04\x8b\xff\xff\xff\x7fabc.",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f].",
    ],
)
def test_lengths_that_are_not_there_cost_nothing(content):
    tracemalloc.start()
    try:
        read(content)
    except InputError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100_000


def test_doubling_costs_its_own_length_only():
    """Each tuple holds the one before twice: written out it would have 2^5000 items."""
    started = time.monotonic()
    nested = b")\x94" + b"".join(b"h" + bytes([i, ord("h"), i]) + b"\x86\x94" for i in range(250))
    last = b"h\xfa"
    assert len(read(assemble(b"(" + nested + b"t"))) == 251
    for use in (b"}" + last + b"Ns", b"\x8f(" + last + b"\x90"):  # hashed, it would take for ever
        with pytest.raises(InputError, match="a key of type tuple"):
            read(assemble(b"(" + nested + use + b"t"))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("nest", [b"\x85", b"", b"("])
def test_depth_costs_no_recursion(nest):
    count = 300_000
    if nest == b"\x85":
        found = read(assemble(b")" + nest * count))
        assert isinstance(found, tuple)
    elif nest == b"":
        found = read(assemble(b"]" * (count + 1) + b"a" * count))
        assert isinstance(found, list)
    else:
        with pytest.raises(InputError, match="doesn't end"):
            read(assemble(b"(" * count))


def test_steps_are_counted():
    assert read(assemble(b"]" + b"]a" * 10), opcodes=30) == [[]] * 10
    with pytest.raises(InputError, match="more steps than any checkpoint takes"):
        read(assemble(b"]" + b"]a" * 20), opcodes=30)


@pytest.mark.parametrize("cut", range(0, 60))
def test_every_truncation_is_damage(cut):
    whole = pickle.dumps({"a": collections.OrderedDict(b=(1, 2.5, "text", b"bytes"))}, 4)
    with pytest.raises(InputError, match="damaged"):
        read(whole[: int(len(whole) * cut / 60)])


def test_what_a_message_shows_of_a_file_is_harmless():
    name = "evil\x1b[31m\nname" + "x" * 5000
    with pytest.raises(InputError) as raised:
        read(assemble("os", name, b"\x93"))
    message = str(raised.value)
    assert len(message) < 300
    assert message.isprintable()
