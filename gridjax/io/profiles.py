"""Series from CSV files, `read_csv_profiles`; and `shapes_of`, which puts any reader's series on a feeder.

A reader gives a `ShapeTable`: named columns of numbers, and which element of the feeder follows which. So do those of
OpenDSS's load shapes (`gridjax.io.loadshapes`) and of SimBench (`gridjax.io.simbench`).

CSV. A header with one name for each column, then one line for each step:

    hour, 671, 645 [kW], 645 [kvar], pvsystem.roof [kW]
    0.25, 0.81, 161.5, 118.0, 0
    ...

- The separator is a comma, a semicolon or a tab; the decimal sign is a point; lines that begin with # are left out.
- A name is that of a load, or written in full: `load.671`, `generator.g1`, `pvsystem.roof`, `storage.b1`; `all` stands
  for all loads that have no column. Upper and lower case are the same.
- A unit is one of pu (the default: factors on `grid.nominal`), %, W, kW, MW, and var, kvar, Mvar for a column of
  reactive power. Without one the power factor stays, or an inverter's kvar.
- `hour` (or `hour [min]`, `hour [s]`) is the time, in equal steps. Without it, `step_hours` says how long a step is.

Files are data from strangers: sizes are bounded, nothing in them is executed, and whatever is wrong with one is a
`ValueError` that names file, line and cure.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from gridjax.feeder import Feeder, Generator, Load, PVSystem, Storage
from gridjax.generation import pv_power, storage_power
from gridjax.profiles import CONSTANT, Kinds, Shapes

MAX_BYTES = 2**30
MAX_COLUMNS = 100_000
SAME_STEP = 1e-6  # of a step: how equal steps must be
KINDS = ("load", "generator", "pvsystem", "storage")
TIMES = {"": 1.0, "h": 1.0, "min": 1 / 60, "s": 1 / 3600}
FACTORS = {"": 1.0, "pu": 1.0, "%": 0.01}
KW = {"w": 1e-3, "kw": 1.0, "mw": 1e3}
KVAR = {"var": 1e-3, "kvar": 1.0, "mvar": 1e3}
_HEAD = re.compile(r"^(.*?)\s*(?:\[([^\[\]]*)\])?$")


@dataclass(frozen=True)
class ShapeTable:
    """Columns of numbers, and who follows them.

    Attributes:
      names: of the columns.
      p, q: (steps, columns) factors on active and reactive powers, or kW and kvar where `actual`.
      actual: for each column.
      hour: (steps,) since the first midnight.
      who: the column's name for each element, such as `{"load.671": "home"}`; all in lower case.
    """

    names: tuple[str, ...]
    p: np.ndarray
    q: np.ndarray
    actual: tuple[bool, ...]
    hour: np.ndarray
    who: dict[str, str] = field(default_factory=dict)


def shapes_of(feeder: Feeder, table: ShapeTable, who: dict[str, str] | None = None) -> Shapes:
    """A table's columns on a feeder's loads and generation entries.

    Args:
      feeder: whose `grid.nominal` the factors refer to.
      table: from a reader.
      who: the column for each element, such as `{"load.671": "load.H0-A"}`; None for the table's own. Elements that
        are not in it stay as the operating point has them.

    Returns:
      Shapes, with only those columns that somebody follows.

    Raises:
      ValueError: an element or a column is unknown.
    """
    rule = {k.lower(): v for k, v in (table.who if who is None else who).items()}
    column = {name: i for i, name in enumerate(table.names)}
    elements = element_names(feeder)
    unknown = [k for k in rule if k not in {e for names in elements for e in names}]
    if unknown:
        raise ValueError(f"feeder {feeder.name!r} has no {', '.join(unknown[:5])}; write 'load.name' or the like")
    missing = sorted({v for v in rule.values() if v not in column})
    if missing:
        raise ValueError(f"there is no column {', '.join(missing[:5])}; there are {', '.join(table.names[:20])}")
    used = sorted({column[v] for v in rule.values()})
    place = {old: new for new, old in enumerate(used)}
    load, generation = (tuple(place[column[rule[e]]] if e in rule else CONSTANT for e in names) for names in elements)
    return Shapes(
        p=jnp.asarray(table.p[:, used]),
        q=jnp.asarray(table.q[:, used]),
        hour=jnp.asarray(table.hour),
        kinds=Kinds(load, generation, tuple(table.actual[i] for i in used)),
    )


def element_names(feeder: Feeder) -> tuple[list[str], list[str]]:
    """`"load.671"` of all loads, and `"generator.g"`, `"pvsystem.p"`, `"storage.s"` of all generation entries."""
    tables = (feeder.generators, feeder.pv_systems, feeder.storages)
    generation = [f"{kind}.{r.name.lower()}" for kind, rows in zip(KINDS[1:], tables, strict=True) for r in rows]
    return [f"load.{r.name.lower()}" for r in feeder.loads], generation


def resampled(table: ShapeTable, step_hours: float) -> ShapeTable:
    """The means over longer steps, a whole number of the table's.

    Raises:
      ValueError: they are not.
    """
    have = float(table.hour[1] - table.hour[0])
    n = round(step_hours / have)
    if n < 1 or abs(n * have - step_hours) > SAME_STEP * have or len(table.hour) % n:
        raise ValueError(f"{len(table.hour)} steps of {have:g} h do not make whole steps of {step_hours:g} h")
    p, q = (a.reshape(-1, n, a.shape[1]).mean(axis=1) for a in (table.p, table.q))
    return dataclasses.replace(table, p=p, q=q, hour=table.hour[n - 1 :: n])


# --- CSV. ---


def read_csv_profiles(path: str | Path, feeder: Feeder, *, step_hours: float | None = None) -> ShapeTable:
    """Reads a CSV file for a feeder's elements; see the module's text for the format.

    Args:
      path: the file.
      feeder: names and power factors.
      step_hours: length of a step where the file has no hours; the first step then ends at that time.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: anything else; the message names the file, the line and the cure.
    """
    path = Path(path)
    lines = lines_of(path)
    number, head = next(lines, (0, ""))
    if not head:
        raise ValueError(f"{path}: the file is empty; its first line must name the columns")
    separator = max(",;\t", key=head.count)
    columns = _columns(path, number, next(csv.reader([head], delimiter=separator)), feeder)
    values = values_of(path, lines, separator, len(columns), range(len(columns)))
    hour = _hours(path, values, columns, step_hours)
    return _table(feeder, columns, values, hour)


@dataclass(frozen=True)
class _Column:
    """A column of a CSV file: whose it is ("hour", "load.x", "all"), its scale, actual power, reactive power."""

    element: str
    scale: float
    actual: bool = False
    reactive: bool = False


def _columns(path: Path, line: int, heads: list[str], feeder: Feeder) -> list[_Column]:
    known = {e for names in element_names(feeder) for e in names} | {"all"}
    columns = []
    for head in heads:
        name, unit = (part.strip().lower() for part in _HEAD.sub(r"\1\n\2", head.strip()).split("\n"))
        if name == "hour":
            if unit not in TIMES:
                raise ValueError(f"{path}:{line}: the time has the unit {unit!r}; give h, min or s")
            columns.append(_Column("hour", TIMES[unit]))
            continue
        element = name if name in known else f"load.{name}"
        if element not in known:
            raise ValueError(f"{path}:{line}: {head.strip()!r} names no element of feeder {feeder.name!r}")
        if unit not in {**FACTORS, **KW, **KVAR}:
            raise ValueError(f"{path}:{line}: {head.strip()!r} has an unknown unit; give pu, %, kW, kvar or the like")
        scale = {**FACTORS, **KW, **KVAR}[unit]
        if element == "all" and unit not in FACTORS:
            raise ValueError(f"{path}:{line}: 'all' loads can only have factors; leave its unit out")
        columns.append(_Column(element, scale, unit not in FACTORS, unit in KVAR))
    seen = [(c.element, c.reactive) for c in columns]
    twice = next((element for element, reactive in seen if seen.count((element, reactive)) > 1), None)
    if twice:
        raise ValueError(f"{path}:{line}: {twice} has two columns; remove one")
    return columns


def _hours(path: Path, values: np.ndarray, columns: list[_Column], step_hours: float | None) -> np.ndarray:
    at = next((i for i, c in enumerate(columns) if c.element == "hour"), None)
    if at is None:
        if step_hours is None or not step_hours > 0:
            raise ValueError(f"{path}: there is no column 'hour'; give step_hours, the length of a step")
        return step_hours * np.arange(1, len(values) + 1)
    hour = values[:, at] * columns[at].scale
    steps = np.diff(hour)
    if len(steps) and not (steps[0] > 0 and np.all(np.abs(steps - steps[0]) <= SAME_STEP * steps[0])):
        worst = int(np.argmax(np.abs(steps - steps[0]) > SAME_STEP * steps[0]))
        raise ValueError(
            f"{path}: the hours are not in equal steps (row {worst + 2} of the data comes {steps[worst]:g} h after the "
            "one before): fill the gap or resample"
        )
    return hour


def _table(feeder: Feeder, columns: list[_Column], values: np.ndarray, hour: np.ndarray) -> ShapeTable:
    """Active and reactive columns put together; where there is no reactive one, the power factor stays."""
    loads, generation = element_names(feeder)
    records = dict(
        zip(
            loads + generation,
            (*feeder.loads, *feeder.generators, *feeder.pv_systems, *feeder.storages),
            strict=True,
        )
    )
    active = {c.element: (values[:, i] * c.scale, c.actual) for i, c in enumerate(columns) if not c.reactive}
    reactive = {c.element: values[:, i] * c.scale for i, c in enumerate(columns) if c.reactive}
    active.pop("hour", None)
    names, p, q, flags = [], [], [], []
    for element in dict.fromkeys([*active, *reactive]):
        kw, actual = active.get(element, (None, True))
        nominal, _ = _nominal(records[element]) if element in records else (0.0, 0.0)
        if kw is None:
            kw = np.full(len(hour), nominal)
        elif element in reactive and not actual:  # factors beside kvar
            kw, actual = kw * nominal, True
        names.append(element)
        p.append(kw)
        q.append(reactive[element] if element in reactive else _reactive(records.get(element), kw, actual))
        flags.append(actual)
    who = {name: name for name in names if name != "all"}
    if "all" in names:
        who |= {load: "all" for load in loads if load not in who}
    return ShapeTable(tuple(names), np.stack(p, 1), np.stack(q, 1), tuple(flags), hour, who)


def _nominal(record: Load | Generator | PVSystem | Storage) -> tuple[float, float]:
    """What `grid.nominal` has of it, kW and kvar."""
    if isinstance(record, PVSystem):
        return pv_power(record)
    return storage_power(record) if isinstance(record, Storage) else (record.kw, record.kvar)


def _reactive(record, kw: np.ndarray, actual: bool) -> np.ndarray:
    """Reactive power where no column says it: the power factor stays, or an inverter's kvar."""
    if not actual:
        return np.ones_like(kw) if isinstance(record, (PVSystem, Storage)) else kw
    nominal, kvar = _nominal(record)
    if isinstance(record, (PVSystem, Storage)) or not nominal:
        return np.full_like(kw, kvar)
    return kw * (kvar / nominal)


# --- Lines and numbers. ---


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and lines, without empty ones and those that begin with #."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES} bytes: split the file")
    return _numbered(path)


def _numbered(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            for number, line in enumerate(file, start=1):
                text = line.rstrip("\n")
                if text.strip() and not text.startswith("#"):
                    yield number, text
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file is not UTF-8 text ({error.reason}): save it as such") from None


def values_of(
    path: Path, lines: Iterable[tuple[int, str]], separator: str, width: int, wanted: Iterable[int]
) -> np.ndarray:
    """The numbers of the wanted columns, (steps, wanted)."""
    if width > MAX_COLUMNS:
        raise ValueError(f"{path}: {width} columns, more than {MAX_COLUMNS}: split the file")
    wanted, rows = list(wanted), []
    for number, line in lines:
        cells = line.split(separator)
        if len(cells) != width:
            raise ValueError(f"{path}:{number}: {len(cells)} values where the header names {width} columns")
        rows.append([_number(path, number, cells[i], i) for i in wanted])
    if not rows:
        raise ValueError(f"{path}: there is no line of numbers below the header")
    return np.array(rows)


def _number(path: Path, line: int, cell: str, column: int) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if math.isfinite(value):
        return value
    what = cell.strip() or "nothing"
    cure = "write a decimal point" if re.fullmatch(r"[+-]?\d+,\d+", what) else "fill the gap"
    raise ValueError(f"{path}:{line}: column {column + 1} holds {what[:40]!r}, which is not a number; {cure}")
