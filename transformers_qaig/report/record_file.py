"""Reads a report's JSON, which may come from anybody: every field is checked, so that the page can rely on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..utils.files import write
from ..utils.json_file import read_json
from ..utils.printable import printable
from ..utils.quote import quote
from .record import KIND, VERSION, Record, as_text

BESIDE_MODEL, IN_WORK_DIR = "qaig_report.json", "report.json"
LARGEST = 64 << 20
MOST_ENTRIES = 200_000
LONGEST = 20_000
LARGEST_NUMBER, SMALLEST_NUMBER = 1e30, 1e-30
"""Sums, logarithms and quotients of such numbers are finite. A smaller one counts as 0."""
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_WIDTHS = frozenset(map(str, range(1, 65)))
_TARGET_NUMBERS = ("error", "entering", "pictures", "text", "seconds")
_TARGET_COUNTS = ("memory", "device_memory", "accepted", "rejected")


class RecordError(ValueError):
    """A file is no report that this version can read."""


def save_record(record: Record, file: Path) -> None:
    """Writes a record whole."""
    write(file, as_text(record))


def read_record(file: Path) -> Record:
    """Reads a record.

    Raises:
        RecordError: it is no report, of a later version, or a field is not what it should be; the message names it.
        OSError: it cannot be read.
    """
    try:
        return checked(read_json(file, LARGEST))
    except RecordError as error:
        raise RecordError(f"{file} is no report of a quantized model: {error}") from error
    except ValueError as error:
        raise RecordError(f"{file} is no report of a quantized model: {error}. Write it anew.") from error


def checked(data: Any) -> Record:
    """Returns a copy of `data` with every field of its kind; unknown fields are left out.

    Raises:
        RecordError: see [`read_record`].
    """
    if not isinstance(data, Mapping) or data.get("kind") != KIND:
        raise RecordError(f"`kind` must be {KIND!r}.")
    version = data.get("version")
    if type(version) is not int or version < 1:
        raise RecordError(f"`version` must be {VERSION} or an earlier one, got {quote(version)}.")
    if version > VERSION:
        raise RecordError(f"`version` must be {VERSION} at most, got {version}. Install a newer transformers-qaig.")
    read = _Fields(data, "")
    return {
        "kind": KIND,
        "version": version,
        **{name: read.text(name) for name in ("written_by", "model", "recipe", "repeat")},
        **{name: read.count(name) for name in ("targets_in_all", "samples", "tokens")},
        **{name: read.number(name) or 0.0 for name in ("seconds", "bytes_per_sample", "bits_per_weight")},
        "lengths": read.list("lengths", _count),
        "left_out": read.mapping("left_out", _text),
        "times": read.mapping("times", _number),
        "facts": read.list("facts", _fact),
        "config": dict(data["config"]) if isinstance(data.get("config"), Mapping) else {},
        "sizes": read.list("sizes", _size),
        "layers": read.list("layers", _layer),
        "targets": read.list("targets", _target),
        "prices": None if data.get("prices") is None else _prices(data["prices"], "prices"),
        "views": read.list("views", _view),
        "token_weights": read.mapping("token_weights", lambda v, w: _Fields({"": v}, w).mapping("", _weights)),
    }


class _Fields:
    """The fields of one JSON object; what is missing is empty."""

    def __init__(self, data: Any, where: str):
        if not isinstance(data, Mapping):
            raise RecordError(f"`{where}` must be an object, got {quote(data)}.")
        self.data, self.where = data, where

    def _name(self, name: str) -> str:
        return f"{self.where}.{name}".strip(".")

    def text(self, name: str) -> str:
        return _text(self.data.get(name, ""), self._name(name))

    def count(self, name: str) -> int:
        return _count(self.data.get(name, 0), self._name(name))

    def number(self, name: str) -> float | None:
        return _number(self.data.get(name), self._name(name))

    def list(self, name: str, item: Callable[[Any, str], Any]) -> list[Any]:
        value, where = self.data.get(name, []), self._name(name)
        if not isinstance(value, list) or len(value) > MOST_ENTRIES:
            raise RecordError(f"`{where}` must be a list of at most {MOST_ENTRIES:,} entries.")
        return [item(each, f"{where}[{index}]") for index, each in enumerate(value)]

    def mapping(self, name: str, item: Callable[[Any, str], Any]) -> dict[str, Any]:
        value, where = self.data.get(name, {}), self._name(name)
        if not isinstance(value, Mapping) or len(value) > MOST_ENTRIES:
            raise RecordError(f"`{where}` must be an object of at most {MOST_ENTRIES:,} entries.")
        return {_text(key, where): item(each, f"{where}[{quote(key)}]") for key, each in value.items()}


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise RecordError(f"`{where}` must be a string, got {quote(value)}.")
    return printable(value[:LONGEST])


def _count(value: Any, where: str) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise RecordError(f"`{where}` must be a whole number, got {quote(value)}.")
    return value


def _number(value: Any, where: str) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise RecordError(f"`{where}` must be a finite number or null, got {quote(value)}.")
    return float(value) if abs(value) >= SMALLEST_NUMBER else 0.0


def _fact(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or len(value) != 2:
        raise RecordError(f"`{where}` must be a name and a value, got {quote(value)}.")
    return [_text(part, where) for part in value]


def _size(value: Any, where: str) -> Record:
    read = _Fields(value, where)
    sizes = {name: max(read.number(name) or 0.0, 0.0) for name in ("before", "after")}
    return {"name": read.text("name"), "bits": read.list("bits", _count), **sizes}


def _layer(value: Any, where: str) -> Record:
    read = _Fields(value, where)
    widths = read.mapping("widths", _count)
    if not widths or not all(bits in _WIDTHS for bits in widths):
        raise RecordError(f"`{where}.widths` must count weights by their bits, got {quote(widths)}.")
    return {"block": read.text("block"), "name": read.text("name"), "widths": widths}


def _target(value: Any, where: str) -> Record:
    read = _Fields(value, where)
    return {
        "path": read.text("path"),
        **{name: read.number(name) for name in _TARGET_NUMBERS},
        **{name: read.count(name) for name in _TARGET_COUNTS},
        "resumed": value.get("resumed") is True,
        "rejected_steps": read.list("rejected_steps", _text),
        "to_nearest": read.mapping("to_nearest", _text),
        "averaged": read.mapping("averaged", _count),
        "damping": read.mapping("damping", lambda v, w: _numbers(v, w, 2)),
    }


def _numbers(value: Any, where: str, count: int) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        raise RecordError(f"`{where}` must be {count} numbers, got {quote(value)}.")
    return [_number(each, where) or 0.0 for each in value]


def _triple(value: Any, where: str) -> list[float]:
    return _numbers(value, where, 3)


def _prices(value: Any, where: str) -> Record:
    def layer(value: Any, where: str) -> Record:
        read = _Fields(value, where)
        return {"block": read.text("block"), "name": read.text("name"), "options": read.list("options", _triple)}

    read = _Fields(value, where)
    front = read.list("front", _triple)
    return {
        "cost": read.text("cost"),
        "layers": read.list("layers", layer),
        "front": front,
        "knee": min(read.count("knee"), max(len(front) - 1, 0)),
        "uniform": read.list("uniform", _triple),
        "chosen": None if value.get("chosen") is None else _triple(value["chosen"], f"{where}.chosen"),
    }


def _base64(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > 1 << 20 or not _BASE64.fullmatch(value):
        raise RecordError(f"`{where}` must be base64, got {quote(value)}.")
    return value


def _view(value: Any, where: str) -> Record:
    read = _Fields(value, where)
    grid = value.get("grid")
    if grid is not None and not (isinstance(grid, list) and len(grid) == 2 and all(_count(g, where) for g in grid)):
        raise RecordError(f"`{where}.grid` must be two numbers or null, got {quote(grid)}.")
    return {
        **{name: read.count(name) for name in ("index", "tokens")},
        "words": read.list("words", _text),
        "picture_tokens": read.list("picture_tokens", _count),
        "pictures": read.list("pictures", _base64),
        "grid": grid,
    }


def _weights(value: Any, where: str) -> Record:
    read = _Fields(value, where)
    return {"most": read.number("most") or 0.0, "codes": _base64(value.get("codes"), f"{where}.codes")}
