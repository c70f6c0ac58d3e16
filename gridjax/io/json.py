"""The feeder's own file format: the tables of `gridjax.feeder` as JSON, one record a line.

    {
    "format": "gridjax-feeder",
    "version": 1,
    "name": "two-bus",
    "frequency_hz": 60.0,
    "buses": [
      {"name": "a", "base_kv": 2.4, "nodes": [1, 2, 3]},
      {"name": "b", "base_kv": 2.4, "nodes": [1, 2, 3]}
    ],
    ...
    }

Fields at their default are left out, numbers are written so that they read back bit for bit, and a
code says which of the three it is in `"kind"`: "matrix", "sequence" or "geometry". A path that ends
in `.gz` is compressed. The format follows the dataclasses' annotations: a new table or field needs
no code here, but a new `VERSION` where old files would no longer mean the same.

A file is data from a stranger: its size, depth and counts are bounded, nothing in it is executed,
and whatever is wrong with it is a `ValueError` that names the place and the cure. What the numbers
mean is not judged here: see `gridjax.validate`.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import os
import re
import sys
import typing
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gridjax.feeder import Admittance, Feeder, Geometry, LineCode, Matrix, SequenceCode

FORMAT = "gridjax-feeder"
VERSION = 1
MAX_BYTES = 128 * 2**20  # of the file, and of what it decompresses to
MAX_DEPTH = 12
MAX_RECORDS = 1_000_000  # in a table
MAX_INT = 2**31 - 1

_KINDS = {"matrix": LineCode, "sequence": SequenceCode, "geometry": Geometry}
_SQUARE = {(LineCode, "r"), (LineCode, "x"), (LineCode, "c"), (Admittance, "g"), (Admittance, "b")}
_TOKEN = re.compile(r'"(?:[^"\\]+|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_PIECE = 2**20
_MAX_FLOAT = sys.float_info.max

_Decoder = Callable[[Any], Any]


def write_json(feeder: Feeder, path: str | Path) -> None:
    """Writes a feeder.

    Args:
      feeder: what to write. NumPy's numbers and arrays, and lists, become plain numbers and tuples.
      path: where; compressed if it ends in `.gz`. An existing file is replaced.

    Raises:
      ValueError: the feeder holds something that `read_json` would refuse, such as a NaN.

    Guarantees:
      `read_json(path)` equals the feeder bit for bit, and one feeder always gives the same bytes.
    """
    try:
        text = _to_text(_decoder(Feeder)(_plain(feeder)))
        data = text.encode()
        if len(data) > MAX_BYTES:
            raise _Bad(f"would take {len(data)} bytes of JSON, more than {MAX_BYTES}: split the feeder")
    except _Bad as error:
        raise ValueError(f"{path}: cannot be written: {error}") from None
    if str(path).lower().endswith(".gz"):
        buffer = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as stream:
            stream.write(data)
        data = buffer.getvalue()
    Path(path).write_bytes(data)


def read_json(path: str | Path) -> Feeder:
    """Reads a feeder that `write_json` wrote.

    Args:
      path: the file; decompressed if it ends in `.gz`.

    Returns:
      The feeder, its tables of the right types but not otherwise checked (see `gridjax.validate`).

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: anything else; the message names the file, the table, the element and the field.
    """
    try:
        text = _decode_text(_read_bytes(path))
        _check_depth(text)
        return _decoder(Feeder)(_check_header(_parse(text)))
    except _Bad as error:
        raise ValueError(f"{path}: {error}") from None


class _Bad(Exception):
    """What is wrong, and where: `place` grows outwards, level by level."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message
        self.place = ""

    def within(self, place: str) -> _Bad:
        """The same error, seen from one level further out."""
        self.place = place + self.place
        return self

    def __str__(self) -> str:
        return f"{self.place.lstrip('.')} {self.message}".lstrip()


class _Refused:
    """A number in the file that no field can hold: NaN, an infinity, or an endless integer."""

    def __init__(self, text: str) -> None:
        self.text = _short(text)


class _Object(dict):
    """A JSON object that remembers a key which it had twice."""

    twice: str | None = None


# Bytes and text


def _read_bytes(path: str | Path) -> bytes:
    """The file's content, decompressed, in bounded pieces."""
    limit = MAX_BYTES
    data = bytearray()
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > limit:
                raise _Bad(f"holds more than {limit} bytes: split the feeder")
            compressed = str(path).lower().endswith(".gz")
            stream = gzip.GzipFile(fileobj=file) if compressed else file
            while piece := stream.read(_PIECE):
                data += piece
                if len(data) > limit:
                    raise _Bad(f"holds more than {limit} bytes of JSON: split the feeder")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _Bad(f"is not whole gzip data ({error}): write the file again") from None
    return bytes(data)


def _decode_text(data: bytes) -> str:
    if data[:2] == b"\x1f\x8b":
        raise _Bad("is gzip data: give the file a name that ends in .gz, or decompress it once")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Bad(f"is not UTF-8 at byte {error.start}: save it as UTF-8") from None


def _check_depth(text: str) -> None:
    """Refuses deep nesting before the recursive parser meets it."""
    depth = 0
    for match in _TOKEN.finditer(text):
        first = match.group()[0]
        if first in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                line = text.count("\n", 0, match.start()) + 1
                raise _Bad(f"line {line}: nested deeper than {MAX_DEPTH}: this is not a feeder's file")
        elif first in "]}":
            depth -= 1


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_to_object, parse_constant=_Refused, parse_int=_to_int)
    except json.JSONDecodeError as error:
        raise _Bad(
            f"line {error.lineno} column {error.colno}: not JSON ({error.msg}): "
            "the file is damaged or cut off; write it again"
        ) from None


def _to_object(pairs: list[tuple[str, Any]]) -> _Object:
    result = _Object(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        result.twice = next(k for k, _ in pairs if k in seen or seen.add(k))
    return result


def _to_int(text: str) -> int | _Refused:
    return int(text) if len(text) <= 20 else _Refused(text)


def _plain(value: Any) -> Any:
    """Dataclasses as dicts, tuples and arrays as lists, NumPy numbers as Python's."""
    if dataclasses.is_dataclass(value):
        return _tag(value) | {name: _plain(item) for name, item in vars(value).items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value


def _tag(record: Any) -> dict[str, str]:
    """What tells a code's class apart; nothing for other records."""
    return next(({"kind": kind} for kind, cls in _KINDS.items() if type(record) is cls), {})


def _to_text(feeder: Feeder) -> str:
    """The scalars first, then the tables, each with one record a line."""
    scalars = [f'"format": {_dumps(FORMAT)}', f'"version": {VERSION}']
    tables = []
    for field in dataclasses.fields(feeder):
        value = getattr(feeder, field.name)
        if _is_default(field, value):
            continue
        if isinstance(value, tuple):
            records = ",\n  ".join(_dumps(_without_defaults(record)) for record in value)
            tables.append(f'"{field.name}": [\n  {records}\n]' if value else f'"{field.name}": []')
        else:
            scalars.append(f'"{field.name}": {_dumps(value)}')
    return "{\n" + ",\n".join(scalars + tables) + "\n}\n"


def _without_defaults(value: Any) -> Any:
    """A record, or a tuple with records such as the windings, without what reading supplies."""
    if isinstance(value, tuple):
        return [_without_defaults(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    items = ((field, getattr(value, field.name)) for field in dataclasses.fields(value))
    kept = {f.name: _without_defaults(item) for f, item in items if not _is_default(f, item)}
    return _tag(value) | kept


def _is_default(field: dataclasses.Field, value: Any) -> bool:
    """Whether reading gives this value to an absent field, bit for bit (0.0 is not -0.0)."""
    return value == field.default and repr(value) == repr(field.default)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


# From JSON values to the types that the dataclasses are annotated with


def _check_header(value: Any) -> dict[str, Any]:
    """The outermost object without its format and version, which must be ours."""
    if not isinstance(value, dict):
        raise _Bad(f"must hold a JSON object, found {_describe(value)}: this is no feeder's file")
    found = value.get("format")
    if found != FORMAT:
        raise _Bad(f"has the format {_describe(found)}, expected {FORMAT!r}: this is no feeder's file")
    version = value.get("version")
    if type(version) is not int or version != VERSION:
        raise _Bad(
            f"has the version {_describe(version)}, but the versions supported are: {VERSION}: "
            "read it with the gridjax that wrote it"
        )
    return value


@functools.cache
def _decoder(hint: Any) -> _Decoder:
    """The function which turns a JSON value into the annotated type, or raises `_Bad`."""
    if hint in _SCALARS:
        return _SCALARS[hint]
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _record_decoder(hint)
    if typing.get_origin(hint) is tuple:
        return _tuple_decoder(_decoder(typing.get_args(hint)[0]))
    options = typing.get_args(hint)
    if type(None) in options:
        (inner,) = (_decoder(option) for option in options if option is not type(None))
        return lambda value: None if value is None else inner(value)
    decoders = {kind: _decoder(cls) for kind, cls in _KINDS.items() if cls in options}

    def decode_tagged(value: Any) -> Any:
        kind = value.get("kind") if isinstance(value, dict) else None
        if not isinstance(kind, str) or kind not in decoders:
            raise _Bad(f'must be an object with a "kind" out of {", ".join(decoders)}')
        return decoders[kind](value)

    return decode_tagged


def _tuple_decoder(decode: _Decoder) -> _Decoder:
    def decode_tuple(value: Any) -> tuple:
        if not isinstance(value, list):
            raise _Bad(f"must be a list, found {_describe(value)}: put it in brackets")
        if len(value) > MAX_RECORDS:
            raise _Bad(f"has {len(value)} records, more than {MAX_RECORDS}: split the feeder")
        items = []
        for index, item in enumerate(value):
            try:
                items.append(decode(item))
            except _Bad as error:
                name = item.get("name") if isinstance(item, dict) else None
                label = f" ({_short(name)})" if isinstance(name, str) else ""
                raise error.within(f"[{index}]{label}") from None
        return tuple(items)

    return decode_tuple


def _record_decoder(cls: type) -> _Decoder:
    """The decoder of a dataclass: its fields by their annotations, nothing else, nothing twice."""
    hints = typing.get_type_hints(cls)
    decoders = {name: _field_decoder(cls, name, hint) for name, hint in hints.items()}
    required = [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]
    ignored = {Feeder: {"format", "version"}}.get(cls, {"kind"} if cls in _KINDS.values() else set())

    def decode_record(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _Bad(f"must be an object, found {_describe(value)}: write it in braces")
        if isinstance(value, _Object) and value.twice is not None:
            raise _Bad(f"has the key {_short(value.twice)} twice: remove one")
        fields = {}
        for name, item in value.items():
            if name in decoders:
                try:
                    fields[name] = decoders[name](item)
                except _Bad as error:
                    raise error.within(f".{name}") from None
            elif name not in ignored:
                raise _Bad(f"has the unknown field {_short(name)}: the fields are {', '.join(hints)}")
        missing = [name for name in required if name not in fields]
        if missing:
            raise _Bad(f"lacks the field {missing[0]!r}: add it")
        return cls(**fields)

    return decode_record


def _field_decoder(cls: type, name: str, hint: Any) -> _Decoder:
    """The decoder of one field, which holds a matrix to its shape."""
    decode = _decoder(hint)
    if hint not in (Matrix, Matrix | None):
        return decode

    def decode_matrix(value: Any) -> Any:
        matrix = decode(value)
        widths = {len(row) for row in matrix or ()}
        if len(widths) > 1:
            raise _Bad(f"is ragged: its rows have {sorted(widths)[:9]} entries: make them equal")
        if (cls, name) in _SQUARE and widths - {len(matrix)}:
            raise _Bad(f"has {len(matrix)} rows of {widths.pop()}: a square matrix is needed")
        return matrix

    return decode_matrix


def _decode_str(value: Any) -> str:
    if not isinstance(value, str):
        raise _Bad(f"must be text, found {_describe(value)}: put it in quotes")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise _Bad("holds half of a surrogate pair, which is no character: remove it")
    return value


def _decode_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Bad(f"must be true or false, found {_describe(value)}")
    return value


def _decode_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Bad(f"must be a whole number, found {_describe(value)}: write it without point or quotes")
    if abs(value) > MAX_INT:
        raise _Bad(f"is {value}, beyond {MAX_INT}: correct it")
    return value


def _decode_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, float | int):
        raise _Bad(f"must be a number, found {_describe(value)}: write a finite one, without quotes")
    if abs(value) > _MAX_FLOAT or value != value:
        raise _Bad(f"must be finite, found {value}: correct it")
    return float(value)


_SCALARS: dict[Any, _Decoder] = {
    str: _decode_str,
    bool: _decode_bool,
    int: _decode_int,
    float: _decode_float,
}


def _describe(value: Any) -> str:
    """What a wrong value is, at a bounded length."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the text {_short(value)}"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, _Refused):
        return f"the number {value.text}"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return f"a {type(value).__name__}"


def _short(text: str) -> str:
    """A stranger's text, quoted, escaped and cut."""
    return ascii(text if len(text) <= 40 else text[:40] + "...")
