"""The two errors a person meets: wrong input, and a run that failed.

Commands print the message as one line and exit with the class's code; a message therefore names the file or
value at fault and says what to do about it.
"""


class InputError(ValueError):
    """What the user gave can't be used (a path, a file, an option)."""

    exit_code = 2


class RunError(RuntimeError):
    """The input was fine but the run could not go on (non-finite loss, full disk)."""

    exit_code = 1
