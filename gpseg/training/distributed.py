"""Training in several processes that torchrun started, each on its share of every batch.

The networks are the same in all processes. What a step draws at random it draws for the whole batch, from streams that
are the same everywhere, and each process takes its share; gradients and statistics are averaged explicitly before they
are used. (DistributedDataParallel hooks into one backward pass of one network; a step here has up to four of two
networks, two of them of second order.) A run without torchrun is the same code with one process, `ALONE`.
"""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from gpseg.errors import InputError, RunError

TIMEOUT = 300.0
"""Seconds that a process waits for the others within a step."""

_UNEQUAL_WORK = timedelta(days=2)
_ROLL_CALL = 3.0  # seconds


class RankLost(RunError):
    """Another process of the job ended, or doesn't answer in time."""


def rank_and_count() -> tuple[int, int]:
    """This process's number and how many there are, as torchrun says; (0, 1) without it."""
    if "RANK" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def local_rank() -> int | None:
    """This process's number on its machine, as torchrun says; None without it."""
    return int(os.environ["LOCAL_RANK"]) if "LOCAL_RANK" in os.environ else None


def restarted() -> bool:
    """Whether torchrun started the processes again after one had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


@dataclass(frozen=True)
class Ranks:
    """The processes of a job; `join` makes it. With one process every method is trivial.

    Args:
        rank: number of this process.
        count: how many there are.
        store: what the processes share beside their collectives, to find out who is left.
        unequal: group whose collectives wait for days, where one process works and the others don't. They still fail at
            once if a process ends, for its connections close.
    """

    rank: int = 0
    count: int = 1
    store: dist.Store | None = None
    unequal: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, evaluates and tells."""
        return self.rank == 0

    def share(self, whole: int) -> slice:
        """Which of `whole` items, a multiple of the number of processes, are this process's."""
        each = whole // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def mean_(self, tensors: Sequence[Tensor]) -> None:
        """Put the mean over all processes into tensors, which have the same shapes everywhere."""
        if self.count == 1 or not tensors:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            by_type.setdefault(tensor.dtype, []).append(tensor)
        for some in by_type.values():
            flat = torch.cat([tensor.detach().reshape(-1) for tensor in some])
            with self._naming_the_lost():
                dist.all_reduce(flat)
            flat /= self.count
            for tensor, mean in zip(some, flat.split([t.numel() for t in some]), strict=True):
                tensor.detach().copy_(mean.view(tensor.shape))

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes of a tensor, without a gradient."""
        value = value.detach().clone()
        self.mean_([value])
        return value

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes of a tensor, without a gradient."""
        return self.mean(value) * self.count

    def any(self, flag: bool) -> bool:
        """Whether a flag is up in any process; all processes have to ask, and get the same answer."""
        if self.count == 1:
            return flag
        flags = torch.tensor(int(flag))
        with self._naming_the_lost():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def wait(self) -> None:
        """Go on when every process is here, however long the first one works."""
        if self.count > 1:
            with self._naming_the_lost():
                dist.all_reduce(torch.zeros(1), group=self.unequal)

    @contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """Do something in the first process, then in the others, which find it done."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def check_equal(self, tensors: Sequence[Tensor], what: str) -> None:
        """Compare the bits of tensors, by a sum.

        Raises:
            RunError: they differ between processes.
        """
        if self.count == 1:
            return
        own = torch.tensor([_bits(tensor) for tensor in tensors]).sum()
        sums = torch.stack([own, -own])
        with self._naming_the_lost():
            dist.all_reduce(sums, dist.ReduceOp.MAX)
        if sums[0] != -sums[1]:
            raise RunError(
                f"the processes have different {what}; start them again from the same state, with --resume"
            )

    @contextmanager
    def _naming_the_lost(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            lost = self._roll_call()
            who = f"rank {', '.join(map(str, lost))}" if lost else "another rank"
            raise RankLost(
                f"{who} of {self.count} ended or does not answer; see its own message, and continue with --resume"
            ) from error

    def _roll_call(self) -> list[int]:
        """Who is left says so in the store; returns the others, or none if that can't be found out."""
        assert self.store is not None
        names = [f"here/{rank}" for rank in range(self.count)]
        try:
            self.store.set(names[self.rank], "")
            end = time.monotonic() + _ROLL_CALL
            while time.monotonic() < end and not self.store.check(names):
                time.sleep(0.1)
            return [rank for rank, name in enumerate(names) if not self.store.check([name])]
        except RuntimeError:
            return []


ALONE = Ranks()


_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(tensor: Tensor) -> int:
    flat = tensor.detach().reshape(-1)
    return int(flat.view(_INTEGERS[flat.element_size()]).sum(dtype=torch.int64))


_joined: list[Ranks] = []


@contextmanager
def join(out: object, timeout: float = TIMEOUT) -> Iterator[Ranks]:
    """Meet the other processes that torchrun started.

    Within another `join`, that one's processes.

    Args:
        out: the run folder that was asked for.
        timeout: seconds that a process waits within a step for the others.

    Yields:
        The processes; `ALONE` without torchrun.

    Raises:
        InputError: `out` is None: several processes have to agree on a folder, and find it again when restarted.
        RunError: the others don't come.
    """
    rank, count = rank_and_count()
    if _joined or count == 1:
        yield _joined[-1] if _joined else ALONE
        return
    if out is None:
        raise InputError("torchrun: say with --out which run folder the processes share")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        store, _, _ = next(dist.rendezvous("env://"))
        # The store outlives a restart, and so do addresses of processes that are gone.
        store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=count, timeout=timedelta(seconds=timeout)
        )
        unequal = dist.new_group(backend="gloo", timeout=_UNEQUAL_WORK)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RunError(f"the {count} processes don't meet ({reason}); start them again") from error
    assert isinstance(unequal, dist.ProcessGroup)
    _joined.append(Ranks(rank, count, store, unequal))
    try:
        yield _joined[-1]
        # Not after an error: the others may be gone, and what they left unfinished is not waited for.
        dist.destroy_process_group()
    finally:
        _joined.pop()
