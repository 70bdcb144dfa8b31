"""What every command does around its work: parse options, set up logging, turn exceptions into exit codes."""

import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from gpseg.atomic import is_disk_full
from gpseg.errors import InputError, RunError
from gpseg.training.distributed import rank_and_count
from gpseg.training.run_folder import Interrupted

Config = TypeVar("Config")


def run(
    command: str,
    config_class: type[Config],
    main: Callable[[Config], Any],
    description: str,
    args: Sequence[str] | None = None,
) -> NoReturn:
    """Parse the command line, do the work, and exit.

    Exit codes: 0 done, 1 the run failed, 2 wrong input or usage, 130 interrupted. Errors are one line on stderr;
    with `GPSEG_DEBUG=1` in the environment they come with their traceback.

    Args:
        command: module of the command, such as "gpseg.pretrain".
        config_class: dataclass whose fields are the options and whose field docstrings are their help.
        main: does the work.
        description: what the command does, for `--help`.
        args: the command line; None for the process's own.
    """
    args = list(sys.argv[1:] if args is None else args)
    config = tyro.cli(
        config_class,
        prog=f"python -m {command}",
        description=description,
        args=args,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    # Of several processes the first one tells how things go; errors come from whoever has one.
    level = logging.INFO if rank_and_count()[0] == 0 else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        main(config)
    except KeyboardInterrupt as error:
        if rank_and_count()[0] > 0:
            sys.exit(130)  # the first process says it for all
        sys.exit(_fail(_interruption(command, args, error), 130))
    except (InputError, RunError) as error:
        sys.exit(_fail(f"error: {error}", error.exit_code))
    except OSError as error:
        sys.exit(_fail(f"error: {_os_reason(error)}", RunError.exit_code))
    sys.exit(0)


def _os_reason(error: OSError) -> str:
    """What the system says of a file, as "path: reason"."""
    if is_disk_full(error):
        return f"{error.filename or 'write'}: the disk is full; free some space"
    # Of a rename the second name is the one that was asked for.
    path = error.filename2 or error.filename
    reason = error.strerror.lower() if error.strerror else str(error) or type(error).__name__
    return f"{path}: {reason}" if path else reason


def _fail(message: str, code: int) -> int:
    if os.environ.get("GPSEG_DEBUG") == "1":
        logging.getLogger(__name__).exception("traceback (GPSEG_DEBUG=1)")
    rank, count = rank_and_count()
    message = " ".join(message.split())
    # In one write: lines of several processes don't mix.
    sys.stderr.write(f"rank {rank}: {message}\n" if count > 1 else f"{message}\n")
    return code


def _interruption(command: str, args: list[str], error: KeyboardInterrupt) -> str:
    if not isinstance(error, Interrupted):
        return "interrupted"
    if error.within:
        return f"interrupted; {error.folder} holds the state, the same command continues"
    kept = [arg for arg in args if arg != "--resume"]
    if not any(arg == "--out" or arg.startswith("--out=") for arg in kept):
        kept += ["--out", str(error.folder)]
    _, count = rank_and_count()
    local = os.environ.get("LOCAL_WORLD_SIZE", count)
    launch = "python" if count == 1 else f"torchrun --nproc-per-node {local}"
    return f"interrupted; {error.folder} holds the state, continue with: {launch} -m {command} {shlex.join(kept)} --resume"
