"""A data set's masks read in terms of other classes, each of which is made of some of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpseg.data.classes import Classes, read_json, write_json
from gpseg.errors import InputError


@dataclass(frozen=True)
class Reading:
    """How mask files, which hold a data set's own classes, are read.

    Args:
        own: the classes that mask files are written in.
        classes: the classes that masks are read as.
        of: for each of `classes` the ids of its own ones; pixels of those that are nowhere are ignored.

    Raises:
        InputError: an own class is named twice.
    """

    own: Classes
    classes: Classes
    of: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        taken: dict[int, str] = {}
        for name, members in zip(self.classes.names, self.of, strict=True):
            for index in members:
                if index in taken:
                    raise InputError(
                        f'"{self.own.names[index]}" of the data set is named twice, for "{taken[index]}" and "{name}";'
                        " keep it in one"
                    )
                taken[index] = name

    @classmethod
    def plain(cls, own: Classes) -> Reading:
        """Masks read as they are."""
        return cls(own, own, tuple((part.id,) for part in own.classes))

    @classmethod
    def load(cls, path: str | Path, own: Classes) -> Reading:
        """Read a classes.json whose classes may say what they are made of.

        `"of": ["shirt", "trousers"]` names classes of the data set, or gives their ids. A class without it is the one
        of the same name.

        Args:
            path: the file.
            own: the data set's own classes.

        Returns:
            The reading.

        Raises:
            InputError: the file is missing, malformed or inconsistent, or names a class that the data set doesn't have,
                or one twice.
        """
        path = Path(path)
        content = read_json(path)
        try:
            classes = Classes.from_json(content)
            entries = {entry["id"]: entry for entry in content["classes"]}
            members = (_members(entries[part.id], part.name, own) for part in classes.classes)
            return cls(own, classes, tuple(members))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """Return what a classes.json holds that `load` makes this reading of."""
        content = self.classes.to_json()
        for entry, names in zip(content["classes"], self._own_names, strict=True):
            if names != [entry["name"]]:
                entry["of"] = names
        return content

    def save(self, path: str | Path) -> None:
        """Write a classes.json that `load` reads back.

        Args:
            path: the file to write.
        """
        write_json(Path(path), self.to_json())

    def read_mask(self, path: str | Path) -> np.ndarray:
        """Read a mask file.

        Args:
            path: mask file, in the data set's own classes.

        Returns:
            uint8 [H, W] of ids of `classes` and its `ignore_index`.

        Raises:
            InputError: the file is unreadable, or holds ids or colours of no class of the data set.
        """
        return self.read(self.own.read_mask(path))

    def read(self, ids: np.ndarray) -> np.ndarray:
        """Read a mask that is in memory.

        Args:
            ids: uint8 [...] of own ids and anything else, which is ignored.

        Returns:
            uint8 [...] of ids of `classes` and its `ignore_index`.
        """
        read: np.ndarray = self._table[ids]
        return read

    @property
    def ignored(self) -> list[str]:
        """Names of the own classes that are read as none."""
        taken = {name for own in self._own_names for name in own}
        return [name for name in self.own.names if name not in taken]

    def __str__(self) -> str:
        """The classes, what those of another name are made of, and what is ignored."""
        names = zip(self.classes.names, self._own_names, strict=True)
        made = [n if own == [n] else f"{n} ({' + '.join(own)})" for n, own in names]
        return ", ".join(made) + (f"; ignored: {', '.join(self.ignored)}" if self.ignored else "")

    @property
    def _own_names(self) -> list[list[str]]:
        """For each of `classes` the names of its own ones."""
        return [[self.own.names[index] for index in members] for members in self.of]

    @cached_property
    def _table(self) -> np.ndarray:
        """What each own id is read as, uint8 [256]."""
        table = np.full(256, self.classes.ignore_index, dtype=np.uint8)
        for index, members in enumerate(self.of):
            table[list(members)] = index
        return table


def _members(entry: dict[str, Any], name: str, own: Classes) -> tuple[int, ...]:
    """Ids of the own classes that a class of a classes.json is made of."""
    has = f"it has {', '.join(own.names)}"
    if "of" not in entry:
        if name not in own.names:
            raise InputError(
                f'the data set has no class "{name}"; say what it is made of, as in "of": ["{own.names[-1]}"]; {has}'
            )
        return (own.names.index(name),)
    given = entry["of"]
    if not isinstance(given, list) or not given:
        raise InputError(
            f'"of" of class "{name}" must be a list of one or more classes of the data set; {has}'
        )
    for value in given:
        # a bool is an int to Python, and 1.0 is found among ids
        known = own.names if isinstance(value, str) else range(own.num_classes)
        if type(value) not in (int, str) or value not in known:
            raise InputError(
                f'class "{name}" is made of {json.dumps(value)}, which the data set doesn\'t have; {has}'
            )
    return tuple(own.names.index(x) if isinstance(x, str) else x for x in given)
