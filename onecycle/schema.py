"""Plain data of a file, such as JSON, checked against a table of what is expected.

A table is made of kinds: :class:`Number`, :class:`Text`, :class:`Many`, :class:`Maybe`, ``bool``,
``PLAIN`` for any plain data, and a dictionary of kinds by name, in which a name with a question mark
may be missing. Other names than those of a dictionary are allowed: later versions add some.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from onecycle.files import printable, steers

LONGEST_NAME = 1000
MOST_ITEMS = 100_000_000
DEEPEST = 50
SHOWN = 60
PLAIN = object()
"""Any plain data without a text that UTF-8 does not have."""


class Misfit(ValueError):
    """A value is not what is expected: where it is, what it is, and what it must be."""


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number, not a bool."""

    low: float = -sys.float_info.max
    high: float = sys.float_info.max
    whole: bool = False

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.low == -sys.float_info.max:
            return kind
        return f"{kind} " + (
            f"of {self.low:g} or more"
            if self.high == sys.float_info.max
            else f"from {self.low:g} to {self.high:g}"
        )

    def holds(self, value: Any) -> bool:
        """Whether it is one."""
        is_one = isinstance(value, int if self.whole else (int, float))
        return is_one and not isinstance(value, bool) and self.low <= value <= self.high


@dataclass(frozen=True, slots=True)
class Text:
    """A text that UTF-8 has; a name is one line of printable letters as well."""

    longest: int = 1_000_000
    is_name: bool = False

    def __str__(self) -> str:
        kind = "a name: a line of printable letters" if self.is_name else "a text"
        return f"{kind}, {self.longest:,} at most"

    def holds(self, value: Any) -> bool:
        """Whether it is one."""
        if not isinstance(value, str) or len(value) > self.longest:
            return False
        if self.is_name:
            return bool(value) and not any(map(steers, value))
        return not any("\ud800" <= letter <= "\udfff" for letter in value)


NAME = Text(LONGEST_NAME, is_name=True)
SHARE = Number(0, 1)
COUNT = Number(0, 2**53, whole=True)


@dataclass(frozen=True, slots=True)
class Many:
    """A list of one kind."""

    kind: Any
    least: int = 0
    most: int = MOST_ITEMS
    different: bool = False


@dataclass(frozen=True, slots=True)
class Maybe:
    """A kind, or None."""

    kind: Any


@dataclass(frozen=True, slots=True)
class Named:
    """A dictionary with any names, whose values are of one kind."""

    kind: Any


@dataclass(frozen=True, slots=True)
class Anything:
    """A value of one type, whatever it holds."""

    type: type

    def __str__(self) -> str:
        return f"a {self.type.__name__}"

    def holds(self, value: Any) -> bool:
        """Whether it is one."""
        return isinstance(value, self.type)


def of_record(record: type) -> dict[str, Any]:
    """The table of a dataclass of measurements: types from its hints, bounds from its names."""
    return {name: _of_field(name, hint) for name, hint in get_type_hints(record).items()}


def _of_field(name: str, hint: Any) -> Any:
    kinds = get_args(hint)
    if type(None) in kinds:
        (kind,) = (each for each in kinds if each is not type(None))
        return Maybe(_of_field(name, kind))
    if kinds:  # a list
        return Many(_of_field(name, kinds[0]))
    if hint is str:
        return Text()
    if hint is int:
        return Number(int(name == "epoch"), COUNT.high, whole=True)
    if name.endswith("accuracy") or name == "recall":
        return SHARE
    return Number(0) if name.endswith("seconds") else Number()


def check(value: Any, kind: Any, place: str = "") -> None:
    """Refuse a value that is not of its kind.

    Args:
        value: of a file.
        kind: see the module.
        place: what the value is called in the message.

    Raises:
        Misfit: with the first place that is not as it must be.
    """
    if isinstance(kind, Maybe):
        if value is not None:
            check(value, kind.kind, place)
    elif isinstance(kind, (dict, Named)):
        _check_mapping(value, kind, place)
    elif isinstance(kind, Many):
        _check_list(value, kind, place)
    elif kind is PLAIN:
        _check_plain(value, place)
    elif not (isinstance(value, bool) if kind is bool else kind.holds(value)):
        raise _misfit(place, value, "true or false" if kind is bool else str(kind))


def _check_mapping(value: Any, kind: dict[str, Any] | Named, place: str) -> None:
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise _misfit(place, value, "a dictionary with names")
    if isinstance(kind, Named):
        kind = dict.fromkeys(value, kind.kind)
    for name, each in kind.items():
        is_optional, name = name.endswith("?") and name not in value, name.removesuffix("?")
        where = f"{place}.{name}" if place else name
        if name in value:
            check(value[name], each, where)
        elif not is_optional:
            raise Misfit(f"{printable(where)} is missing")


def _check_list(value: Any, kind: Many, place: str) -> None:
    if not isinstance(value, list) or not kind.least <= len(value) <= kind.most:
        count = (
            f"{kind.least:,}"
            if kind.least == kind.most
            else f"from {kind.least:,} to {kind.most:,}"
        )
        raise _misfit(place, value, f"a list of {count}")
    for number, each in enumerate(value, 1):
        check(each, kind.kind, f"{place} row {number}" if place else f"row {number}")
    if kind.different and len(set(value)) < len(value):
        raise _misfit(place, value, "a list without repetitions")


def _check_plain(value: Any, place: str, depth: int = 0) -> None:
    if depth > DEEPEST:
        raise Misfit(f"{printable(place)} is nested more than {DEEPEST} deep")
    if isinstance(value, Mapping):
        for name, each in value.items():
            check(name, Text(), f"a name in {place}" if place else "a name")
            _check_plain(each, place, depth + 1)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _check_plain(each, place, depth + 1)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        check(value, Number(), place)
    elif value is not None and not isinstance(value, bool):
        check(value, Text(), place)


def _misfit(place: str, value: Any, allowed: str) -> Misfit:
    return Misfit(f"{printable(place) or 'it'} is {shown(value)}; it must be {allowed}")


def shown(value: Any) -> str:
    """A value for a message: short, in one line, without what would steer a terminal."""
    try:
        text = printable(repr(value[: SHOWN + 1] if isinstance(value, str) else value)[: SHOWN + 1])
    except (ValueError, RecursionError):  # a number of thousands of digits, or a deep nest
        text = f"too large to show ({type(value).__name__})"
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 4]} ..."


def parse_json(content: bytes | str) -> Any:
    """Plain data of JSON, as strict as its standard.

    Raises:
        Misfit: it is not JSON in UTF-8, has a name twice, a number that is not finite or has
            thousands of digits, or is nested more than 50 deep.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_without_doubles)
    except Misfit:
        raise
    except RecursionError:
        raise Misfit(f"it is nested more than {DEEPEST} deep") from None
    except ValueError as error:  # also of the encoding, and of too many digits
        raise Misfit(f"it is not JSON: {printable(str(error))[:200]}") from None
    _check_plain(value, "a value")
    return value


def parse_row(row: Mapping[str, Any], table: Mapping[str, Any], place: str) -> dict[str, Any]:
    """A row of a CSV file with its numbers as such; other columns than the table's are left out.

    Raises:
        Misfit: a column is missing, or a cell is not of its kind.
    """
    found = {}
    for name, kind in table.items():
        cell = row.get(name)
        if isinstance(kind, Number) and isinstance(cell, str):
            with contextlib.suppress(ValueError):  # it stays a text, which is refused
                cell = (int if kind.whole else float)(cell)
        if cell is not None:
            found[name] = cell
    check(found, table, place)
    return found


def _refuse(constant: str) -> None:
    raise Misfit(f"{constant} is no number of JSON")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Misfit(f"it has {shown(twice)} twice in one place")
    return found
