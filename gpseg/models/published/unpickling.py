"""Read pickles without running them.

A pickle is a program: Python's own reader imports and calls whatever it names. This one is a machine of its own over
`pickletools.genops`. It knows the few opcodes that checkpoints are made of, takes a name only if a table lists it, and
calls nothing but what the table says for that name; what that makes is inert. It recurses nowhere, reserves nothing by
a number that the file states, hashes nothing but texts and numbers (a key of nested tuples may take for ever), and stops
when a budget is spent.
"""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from gpseg.errors import InputError

Make = Callable[[tuple[Any, ...]], Any]
"""Makes an object of pickled arguments; gives None if these are not what it takes."""


@dataclass
class Budget:
    """What reading one file may cost, files nested in it included; what is left of it.

    Args:
        opcodes: steps of all pickles. Generator and discriminator of 1024 px take tens of thousands.
        storage: bytes of all nested files. What is honest has each of them once, so the file's own size is enough.
    """

    opcodes: int = 1_000_000
    storage: int = 0

    def spend_storage(self, size: int) -> None:
        """Take `size` bytes.

        Raises:
            InputError: if there are fewer left.
        """
        self.storage -= size
        if self.storage < 0:
            raise InputError(
                "it unpacks to more than its own size; no checkpoint does, don't use it"
            )


class Inert:
    """What a name of the table makes, if the pickle may give it a state."""

    def restore(self, state: object) -> None:
        """Take the state that the pickle has for this object; dropped unless a class has use for it."""


class Record(Inert, dict[Any, Any]):
    """A dictionary of some class, such as an OrderedDict; attributes besides its entries are dropped."""


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names, as `module name`; only the reader makes these."""

    name: str
    make: Make


def damaged(what: str) -> InputError:
    """The error for content that no program would have written."""
    return InputError(f"damaged ({what}); copy or download it again")


def shown(text: object) -> str:
    """A text from a file as it may stand in a message: in quotes, plain ASCII, and not long."""
    quoted = (
        ascii(text) if isinstance(text, str | int | float | bool | None) else type(text).__name__
    )
    return quoted if len(quoted) <= 80 else f"{quoted[:77]}..."


def read_pickle(
    stream: BinaryIO,
    names: Mapping[str, Make],
    budget: Budget,
    persistent: Make | None = None,
) -> Any:
    """Read one pickle (as protocols 2 to 5 write plain data), and leave the stream behind it.

    Args:
        stream: seekable, at the pickle's start, with all content in memory.
        names: what is made for which `module name`; all others are refused.
        budget: what this may cost.
        persistent: what is made of a persistent id (a tuple); None refuses them.

    Returns:
        What the pickle describes, made of None, numbers, texts, bytes, tuples, lists, dictionaries, sets, and what
        the table's functions gave.

    Raises:
        InputError: if the pickle is damaged, names something else, does what checkpoints don't, or is too large.
    """
    machine = _Machine(names, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            budget.opcodes -= 1
            if budget.opcodes < 0:
                raise InputError("more steps than any checkpoint takes; don't use it")
            machine.step(opcode.name, argument)
    except InputError:
        raise
    except ValueError as error:
        raise damaged("no whole pickle") from error
    return machine.result()


class _Machine:
    def __init__(self, names: Mapping[str, Make], persistent: Make | None) -> None:
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        push = self.stack.append
        match opcode:
            case "PROTO":
                if argument > 5:
                    raise damaged(f"pickle protocol {argument}")
            case "FRAME" | "STOP":
                pass
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise damaged("it recalls what it never stored")
                push(self.memo[argument])
            case (
                "BININT"
                | "BININT1"
                | "BININT2"
                | "LONG1"
                | "BINFLOAT"
                | "SHORT_BINUNICODE"
                | "BINUNICODE"
                | "SHORT_BINBYTES"
                | "BINBYTES"
            ):
                push(argument)
            case "NONE":
                push(None)
            case "NEWTRUE":
                push(True)
            case "NEWFALSE":
                push(False)
            case "EMPTY_TUPLE":
                push(())
            case "EMPTY_LIST":
                push([])
            case "EMPTY_DICT":
                push({})
            case "EMPTY_SET":
                push(set())
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "TUPLE":
                items = self.pop_to_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.pop() for _ in range(int(opcode[-1]))]
                push(tuple(reversed(items)))
            case "APPEND":
                self.extend([self.pop()])
            case "APPENDS":
                self.extend(self.pop_to_mark())
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.update([key, value])
            case "SETITEMS":
                self.update(self.pop_to_mark())
            case "ADDITEMS":
                items = self.pop_to_mark()
                target = self.top()
                if type(target) is not set:
                    raise damaged("items for what is no set")
                target.update(_key(item) for item in items)
            case "GLOBAL":
                self.name(argument)
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                if type(name) is not str or type(module) is not str:
                    raise damaged("a name that is no text")
                self.name(f"{module} {name}")
            case "REDUCE" | "NEWOBJ":
                arguments, function = self.pop(), self.pop()
                self.call(function, arguments)
            case "BUILD":
                state, target = self.pop(), self.top()
                if not isinstance(target, Inert):
                    raise damaged("a state for what has none")
                target.restore(state)
            case "BINPERSID" if self.persistent is not None:
                self.call(Name("persistent id", self.persistent), self.pop())
            case _:
                raise InputError(f"pickle opcode {opcode}, which no checkpoint needs; don't use it")

    def top(self) -> Any:
        if not self.stack:
            raise damaged("it takes more than it has")
        return self.stack[-1]

    def pop(self) -> Any:
        top = self.top()
        del self.stack[-1]
        return top

    def pop_to_mark(self) -> list[Any]:
        if not self.marked:
            raise damaged("it takes more than it has")
        items = self.stack
        self.stack = self.marked.pop()
        return items

    def extend(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise damaged("items for what is no list")
        target.extend(items)

    def update(self, keys_and_values: list[Any]) -> None:
        target = self.top()
        if not isinstance(target, dict) or len(keys_and_values) % 2:
            raise damaged("entries for what is no dictionary")
        for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
            target[_key(key)] = value

    def name(self, name: str) -> None:
        if name not in self.names:
            raise InputError(
                f"it names {shown(name.replace(' ', '.'))}, which no checkpoint of these kinds needs; nothing in it was run,"
                " don't open it with other programs either"
            )
        self.stack.append(Name(name, self.names[name]))

    def call(self, function: Any, arguments: Any) -> None:
        if not isinstance(function, Name) or type(arguments) is not tuple:
            raise damaged("it calls what is no function")
        made = function.make(arguments)
        if made is None:
            raise damaged(f"unusual arguments of {function.name.replace(' ', '.')}")
        self.stack.append(made)

    def result(self) -> Any:
        if self.marked or len(self.stack) != 1:
            raise damaged("it doesn't end with one object")
        return self.stack[0]


def _key(value: Any) -> str | int:
    if type(value) is not str and type(value) is not int:
        raise damaged(f"a key of type {type(value).__name__}")
    return value


def no_arguments(made: Callable[[], Any]) -> Make:
    """A table's function for what is made of nothing."""
    return lambda arguments: None if arguments else made()
