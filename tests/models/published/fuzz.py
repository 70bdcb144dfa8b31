"""Mutate published checkpoints and read them, in a process that may do nothing else.

`python -m tests.models.published.fuzz COUNT SEED` exits with 0 if each was read or refused with one line, ran no code,
opened no file, took no more than seconds and little memory; else it says which mutation did.
"""

import codecs
import contextlib
import pickletools
import random
import resource
import signal
import sys
from collections.abc import Callable
from io import BytesIO
from typing import Any

import torch

from gpseg.errors import InputError
from gpseg.models.published.networks import networks_in
from gpseg.models.stylegan2 import NetworkConfig
from tests.models.published.files import (
    Part,
    network_pickle,
    networks,
    pickled,
    snapshot_parts,
    state_dicts,
    torch_file,
)

SECONDS = 5
MEMORY = 2**30
TINY = NetworkConfig(16, z_dim=2, w_dim=2, channel_base=32, channel_max=2, mapping_layers=1)

NAMES = [(b"os", b"system"), (b"builtins", b"eval"), (b"torch.storage", b"_load_from_bytes")]
FRAGMENTS = [
    b"".join(b"\x8c" + bytes([len(part)]) + part for part in name) + b"\x93" for name in NAMES
] + [
    *(b"R", b"\x81", b"b", b"(", b"t", b"\x85", b"\x86", b"u", b"s", b"e", b"a", b"\x90", b"\x94", b"0", b"2"),
    *(b"Q", b"h\x00", b"j\xff\xff\xff\x7f", b"r\xff\xff\xff\x7f", b"]", b"}", b")", b"N", b"\x88", b"."),
    *(b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"B\xff\xff\xff\xff", b"J\xff\xff\xff\x7f", b"\x82\x01"),
    *(b"\x8a\x08" + b"\xff" * 7 + b"\x7f", b"\x8a\xff" + b"\x11" * 255, b"G" + b"\xff" * 8),
    *(b"cos\nsystem\n", b"X\x02\x00\x00\x00ls\x85R", b"PK\x01\x02", b"PK\x05\x06" + bytes(18)),
]  # fmt: skip


def seeds() -> list[bytes]:
    """Small files of every kind; the first are no networks and refused at once, so most mutations are theirs."""
    part = Part(
        "Layer", gain=0.5, _parameters={"w": torch.nn.Parameter(torch.ones(3))}, _buffers={}
    )
    layers = pickled({"G_ema": part, "D": part, "more": {"a": [1, (2, "b")], "c": {3}}})
    old = pickled({"G": part}, old_numpy=True)
    few = {"g_ema": {"a": torch.ones(2), "b": torch.ones(3)[1:]}, "d": {}, "args": [1.5, "x"]}
    files = [layers, old, torch_file(few), torch_file(few, legacy=True)]
    parts = snapshot_parts(*networks(TINY), TINY)
    for name in ("G", "augment_pipe", "training_set_kwargs"):
        del parts[name]
    whole = [pickled(parts), network_pickle(TINY), torch_file(state_dicts(TINY))]
    return files * 4 + whole * 2


def mutate(content: bytes, other: bytes, rng: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 2, 4, 16, 64, rng.randrange(1, 400))))
        kind = rng.randrange(8)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 8, 40)))
        elif kind == 4:
            start = rng.randrange(len(other))
            data[at:end] = other[start : start + rng.randrange(1, 200)]
        elif kind == 5:
            data[at:at] = data[at:end]
        elif kind == 6:
            data = bytearray(_by_opcodes(bytes(data), rng))
        else:
            data[at:at] = rng.choice(FRAGMENTS)
        if not data:
            break
    return bytes(data)


def _by_opcodes(content: bytes, rng: random.Random) -> bytes:
    """Remove, double, exchange or replace whole opcodes, or put something between two."""
    starts = list(_opcode_starts(content))
    if len(starts) < 3:
        return content
    i, j = sorted(rng.sample(range(len(starts) - 1), 2))
    first, second = (content[starts[k] : starts[k + 1]] for k in (i, j))
    between, rest = content[starts[i + 1] : starts[j]], content[starts[j + 1] :]
    fragment = rng.choice(FRAGMENTS)
    ways = (
        between + second,
        first + first + between + second,
        second + between + first,
        fragment + between + second,
        first + fragment + between + second,
        second + between + second,
    )
    return content[: starts[i]] + rng.choice(ways) + rest


def _opcode_starts(content: bytes) -> list[int]:
    at = max(content.find(b"\x80\x02}"), 0) if content.startswith(b"PK") else 0
    found = []
    try:
        for _, _, position in pickletools.genops(BytesIO(content[at:])):
            found.append(at + position)
    except ValueError:
        pass
    return found


FORBIDDEN = (
    "exec",
    "compile",
    "import",
    "subprocess.",
    "socket.",
    "os.",
    "shutil.",
    "ctypes.",
    "pty.",
    "open",
)
"""Audited events that reading bytes in memory has no reason for; prefixes."""


class Watch:
    """What the process may do; entered for each mutation."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._audit)
        signal.signal(signal.SIGALRM, _too_long)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.on and event.startswith(FORBIDDEN):
            self.seen.append(f"{event} {arguments!r:.200}")
            raise RuntimeError(event)

    def call(self, read: Callable[[bytes], object], content: bytes) -> str:
        """Read, and say how it ended: "read", "refused", or what went wrong."""
        self.seen.clear()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        self.on = True
        try:
            read(content)
            end = "read"
        except InputError as error:
            message = str(error)
            end = (
                "refused"
                if message.isprintable() and len(message) < 500
                else f"message {message!r:.600}"
            )
        except BaseException as error:
            end = f"{type(error).__name__}: {error}"
        finally:
            self.on = False
            signal.setitimer(signal.ITIMER_REAL, 0)
        return f"it did {self.seen[0]}" if self.seen else end


class TooLongError(BaseException):
    """Raised by the alarm; no handler for mistakes catches it."""


def _too_long(number: int, frame: object) -> None:
    raise TooLongError(f"more than {SECONDS} s")


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:  # noqa: PTH123
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(count: int, seed: int) -> int:
    torch.set_num_threads(1)
    files = seeds()
    watch = Watch()
    for codec in ("cp437", "raw_unicode_escape"):  # names in zip archives, texts in old pickles
        codecs.lookup(codec)
    for content in {*files}:  # what is imported or compiled at first use is so now
        for start in (content, content[: len(content) // 2]):
            with contextlib.suppress(InputError):
                networks_in(start)
    if not watch.call(lambda _: exec("1"), b"").startswith("it did "):
        return _say("the watch sees nothing")
    _limit_memory()
    before = _peak()
    rng = random.Random(seed)
    ends = {"read": 0, "refused": 0}
    for i in range(count):
        content = mutate(rng.choice(files), rng.choice(files), rng)
        end = watch.call(networks_in, content)
        if end not in ends:
            return _say(f"mutation {i} of seed {seed}: {end}\n{content.hex()[:4000]}")
        ends[end] += 1
    # What runs out of memory may be refused as damaged like anything else that torch can't read.
    if _peak() - before > MEMORY // 4:
        return _say(f"it took {(_peak() - before) / 2**20:.0f} MiB")
    print(f"{count} mutations of seed {seed}: {ends['read']} read, {ends['refused']} refused")
    return 0


def _say(what: str) -> int:
    print(what)
    return 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
