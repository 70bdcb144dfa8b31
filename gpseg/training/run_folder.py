"""The folder of a training run, and how a run stops.

    config.json      the options the run was started with
    metrics.jsonl    one JSON object a line: "step" and what was measured
    tensorboard/     the same numbers and pictures for TensorBoard
    samples/         pictures
    checkpoints/     training states (the last two), to continue from
    .lock            locked by the process at work in the folder

Every file but the logs is written to a temporary name and renamed, and a reader skips a log line that a kill cut short, so
the folder can be read whenever the run ends.
"""

import contextlib
import fcntl
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from gpseg.atomic import one_line_if_disk_full, remove_leftovers, replacing
from gpseg.errors import InputError
from gpseg.training.distributed import ALONE, Ranks, restarted

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

log = logging.getLogger(__name__)

STATES_KEPT = 2


class Interrupted(KeyboardInterrupt):
    """A run stopped on request, after saving its state.

    Args:
        folder: the run's folder.
        within: whether the run was a part of another job, whose command continues it when it is given again.
    """

    def __init__(self, folder: Path, within: bool = False) -> None:
        super().__init__(str(folder))
        self.folder = folder
        self.within = within


class RunFolder:
    """The folder of a run; make one with `RunFolder.open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: SummaryWriter | None = None
        self._first_step = 0
        self._lock: IO[str] | None = None

    @staticmethod
    def check(
        out: Path | None,
        resume: bool,
        config: Mapping[str, Any] | None = None,
        may_change: Collection[str] = (),
    ) -> None:
        """Find out early whether `open` will refuse the folder or the options.

        Args:
            out: the folder; None for a new one.
            resume: continue the run in `out`.
            config: the run's options; None to look at the folder alone.
            may_change: options that may differ from the run's when it is continued.

        Raises:
            InputError: there is no run to continue, or one with other options, or something else is in the way of a new
                one.
        """
        if resume and out is None:
            raise InputError("--resume: say with --out which run folder to continue")
        if resume and out is not None and not (out / "config.json").exists():
            raise InputError(f"{out}: no run to continue there; leave out --resume")
        taken = out is not None and out.exists() and not (out.is_dir() and not any(out.iterdir()))
        if not resume and taken:
            raise InputError(
                f"{out}: already there and not empty; continue it with --resume or give another --out"
            )
        if resume and config is not None:
            stored = flat_options(RunFolder.stored(out))
            for name, value in flat_options(config).items():
                if name not in may_change and not _same_option(stored.get(name), value):
                    raise InputError(
                        f"{out}: that run has {name} = {stored.get(name)}, not {value}; "
                        "give the same option, or start a new run without --resume"
                    )

    @classmethod
    def open(
        cls,
        out: Path | None,
        command: str,
        config: Mapping[str, Any],
        *,
        resume: bool = False,
        may_change: Collection[str] = (),
        ranks: Ranks = ALONE,
    ) -> "RunFolder":
        """Make a folder for a new run, or open that of a run to continue.

        Args:
            out: the folder; None for `runs/<command>-<date>-<time>`.
            command: name of the command, such as "pretrain".
            config: the run's options; paths and the like are stored as text.
            resume: continue the run in `out`.
            may_change: options that may differ from the run's when it is continued.
            ranks: the processes that share the run; all have to see the folder. Only the first one writes there.

        Returns:
            The run folder.

        Raises:
            InputError: if `out` exists and isn't empty (a new run), holds no run (to continue), holds a run with other
                options, or another process is at work in it.
        """
        cls.check(out, resume, config, may_change)
        ranks.wait()
        path = out or _free_path(Path("runs") / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}")
        folder = cls(path) if ranks.first else ReadFolder(path)
        folder._make()
        folder.write_json("config.json", _as_json(config))
        ranks.wait()
        return folder

    def _make(self) -> None:
        folders = [self.path / name for name in ("checkpoints", "samples")]
        try:
            with one_line_if_disk_full(self.path):
                for folder in folders:
                    folder.mkdir(parents=True, exist_ok=True)
                self._lock = (self.path / ".lock").open("w")
        except PermissionError as error:
            raise InputError(
                f"{self.path}: no permission to write there; give another --out"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise InputError(
                f"{self.path}: another process is at work in it; wait for it or give another --out"
            ) from None
        except OSError:
            pass  # a network file system without locks
        for folder in (self.path, *folders):
            remove_leftovers(folder)

    @staticmethod
    def continues(out: Path | None, resume: bool) -> bool:
        """Whether a run is to be continued: if asked for, or if torchrun started it again after a failure."""
        return resume or (restarted() and out is not None and (out / "config.json").exists())

    @staticmethod
    def stored(out: Path | None) -> dict[str, Any]:
        """The options of the run in a folder.

        Raises:
            InputError: there is no run.
        """
        RunFolder.check(out, resume=True)
        assert out is not None
        file = out / "config.json"
        try:
            config = json.loads(file.read_text())
            if not isinstance(config, dict):
                raise ValueError("it holds no options")
        except (ValueError, OSError) as error:
            raise InputError(f"{file}: can't be read ({error}); start a new run") from error
        return config

    def write_json(self, name: str, content: Any) -> None:
        """Write a JSON file into the folder."""
        with replacing(self.path / name) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n")

    def write_image(self, name: str, image: Tensor, step: int) -> None:
        """Write a picture under `samples/` and to TensorBoard.

        Args:
            name: what it shows.
            image: [3, H, W], uint8.
            step: training step.
        """
        with replacing(self.path / "samples" / f"{step:08d}-{name}.png") as temporary:
            Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy()).save(
                temporary, format="PNG"
            )
        with one_line_if_disk_full(self.path):
            self._tensorboard().add_image(name, image.cpu(), step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line to `metrics.jsonl`, and the numbers to TensorBoard.

        Args:
            step: training step, not smaller than the last.
            values: numbers by name.

        Raises:
            RunError: if the disk is full.
        """
        with one_line_if_disk_full(self.path):
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                self._tensorboard().add_scalar(name, value, step)

    def metrics(self) -> list[dict[str, float]]:
        """What was logged so far; a line that a kill cut short is left out."""
        file = self.path / "metrics.jsonl"
        entries = []
        for line in file.read_text().splitlines() if file.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):
                entries.append(json.loads(line))
        return entries

    def save_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Write a training state; the last two are kept.

        Args:
            step: training step.
            state: tensors, numbers and texts in dicts and lists.

        Raises:
            RunError: if the disk is full.
        """
        path = self.path / "checkpoints" / f"state-{step:010d}.pt"
        # torch's own file writer doesn't say what is wrong when the disk is full.
        with replacing(path) as temporary, temporary.open("wb") as file:
            torch.save({"step": step, **state}, file)
        for old in self._states()[:-STATES_KEPT]:
            old.unlink()

    def load_state(self) -> dict[str, Any] | None:
        """Read the last training state, and forget what was logged after it.

        Returns:
            The state with its "step", tensors on the CPU; None if the run never saved one.

        Raises:
            InputError: if states are there and none can be read.
        """
        states = self._states()
        for file in reversed(states):
            try:
                state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
                step = int(state["step"])
            except Exception as error:  # junk can raise anything
                reason = f"{type(error).__name__} {error}".splitlines()[0]
                log.warning("%s: can't be read (%s), trying the one before", file, reason)
                continue
            self._rewind(step)
            return state
        if states:
            raise InputError(
                f"{states[-1]}: neither this state nor the one before can be read; start a new run"
            )
        self._rewind(0)
        return None

    def last_state(self) -> Path | None:
        """The newest training state's file, if there is one."""
        states = self._states()
        return states[-1] if states else None

    def _states(self) -> list[Path]:
        return sorted((self.path / "checkpoints").glob("state-*.pt"))

    def _rewind(self, step: int) -> None:
        kept = [entry for entry in self.metrics() if entry["step"] <= step]
        with replacing(self.path / "metrics.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        self._first_step = step + 1

    def _tensorboard(self) -> "SummaryWriter":
        if self._writer is None:
            # Importing it takes seconds.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(self.path / "tensorboard", purge_step=self._first_step)
        return self._writer

    def close(self) -> None:
        """Flush and close the TensorBoard log, and leave the folder to other processes."""
        writer, self._writer = self._writer, None
        try:
            if writer is not None:
                with one_line_if_disk_full(self.path):
                    writer.close()
        finally:
            if self._lock is not None:
                self._lock.close()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class ReadFolder(RunFolder):
    """The run folder in a process that isn't the job's first: states are read, nothing is written."""

    def _make(self) -> None:
        pass

    def write_json(self, name: str, content: Any) -> None:
        """Leave that to the first process, as all that follows."""

    def write_image(self, name: str, image: Tensor, step: int) -> None:
        """Leave that to the first process."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Leave that to the first process."""

    def save_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Leave that to the first process."""

    def _rewind(self, step: int) -> None:
        pass


def _as_json(config: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON makes of options, so that they compare equal to those read back."""
    content: dict[str, Any] = json.loads(json.dumps(dict(config), default=str))
    return content


def _same_option(stored: Any, given: Any) -> bool:
    """Whether an option read back is the one given; a path is, however it is written."""
    if isinstance(given, Path) and isinstance(stored, str):
        return Path(stored).resolve() == given.resolve()
    return bool(stored == _as_json({"option": given})["option"])


def flat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with those of a group, such as `tuning`, beside the others."""
    flat: dict[str, Any] = {}
    for name, value in options.items():
        flat |= flat_options(value) if isinstance(value, dict) else {name: value}
    return flat


def _free_path(path: Path) -> Path:
    candidate, number = path, 2
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}-{number}"), number + 1
    return candidate


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Take note of Ctrl-C and SIGTERM instead of breaking off, so that a loop can save its state first.

    A second Ctrl-C breaks off at once. Outside the main thread, where signals can't be handled, nothing changes.

    Yields:
        A function that tells whether a stop was asked for.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = False
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number: int, frame: object) -> None:
        nonlocal requested
        requested = True
        # whatever stands for stderr, as in a notebook, must not stop the stop
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.write(sys.stderr.fileno(), b"\nstopping: saving the state first\n")
        restore()

    for number in before:
        signal.signal(number, note)
    try:
        yield lambda: requested
    finally:
        restore()
