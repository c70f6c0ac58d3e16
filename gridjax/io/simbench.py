"""The series of SimBench's datasets: `read_simbench_profiles`.

SimBench (Meinecke et al., "SimBench: a benchmark dataset of electric power systems", Energies 13, 2020). Its data are
under the Open Database License and do not come with this package: get a dataset from simbench.de, or
`pip install simbench`, which contains them (`simbench_folder`). Read are LoadProfile.csv, RESProfile.csv and
StorageProfile.csv, which hold factors on an element's power for each quarter-hour of 2016, and from Load.csv, RES.csv
and Storage.csv which element follows which.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from gridjax.io.profiles import ShapeTable, lines_of, values_of

_SIMBENCH = {"load": ("Load", "LoadProfile"), "res": ("RES", "RESProfile"), "storage": ("Storage", "StorageProfile")}


def simbench_folder(name: str = "1-complete_data-mixed-all-1-sw") -> Path:
    """The folder of a dataset in the installed package `simbench`, which is not imported.

    Raises:
      ImportError: the package is not installed.
      FileNotFoundError: it has no such dataset.
    """
    spec = importlib.util.find_spec("simbench")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("SimBench's data come with the package simbench: pip install simbench")
    folder = Path(spec.submodule_search_locations[0]) / "networks" / name
    if not folder.is_dir():
        raise FileNotFoundError(f"the package simbench has no dataset {name!r}: there is no folder {folder}")
    return folder


def read_simbench_profiles(folder: str | Path, wanted: Iterable[str] | None = None) -> ShapeTable:
    """Reads the series of a SimBench dataset.

    Args:
      folder: of its CSV files.
      wanted: names of the columns to read, such as `"load.H0-A"`, `"res.PV3"`, `"storage.Storage_PV8_L1-A"`; None
        reads all.

    Returns:
      A table of factors on each element's own power: loads' active and reactive powers, generation's and storages'
      active powers (1 for the reactive), with SimBench's signs. The hours count steps of the length of the first,
      because the files' clock changes to summer time and back though the steps go on. `who` says which element of
      SimBench (`"load.<id>"`, `"res.<id>"`, `"storage.<id>"`, lower case) follows which column.

    Raises:
      FileNotFoundError: the folder has none of the files.
      ValueError: a file is not as it should be; the message names it, the line and the cure.
    """
    folder = Path(folder)
    parts, who, rest = [], {}, None if wanted is None else set(wanted)
    for kind, (elements, profile) in _SIMBENCH.items():
        if not (folder / f"{profile}.csv").is_file():
            continue
        parts.append(_simbench_profile(folder / f"{profile}.csv", kind, rest))
        if (folder / f"{elements}.csv").is_file():
            who |= _simbench_elements(folder / f"{elements}.csv", kind)
    if not parts:
        raise FileNotFoundError(f"{folder} holds no LoadProfile.csv, RESProfile.csv or StorageProfile.csv")
    hour = parts[0].hour
    if any(len(t.hour) != len(hour) or not np.array_equal(t.hour, hour) for t in parts):
        raise ValueError(f"{folder}: the profiles have different steps; take files of one dataset")
    names = sum((t.names for t in parts), ())
    missing = (rest or set()) - set(names)
    if missing:
        raise ValueError(f"{folder}: there is no profile {', '.join(sorted(missing)[:5])}")
    return ShapeTable(
        names,
        np.concatenate([t.p for t in parts], axis=1),
        np.concatenate([t.q for t in parts], axis=1),
        (False,) * len(names),
        hour,
        {element: name for element, name in who.items() if name in names},
    )


def _simbench_profile(path: Path, kind: str, wanted: set[str] | None) -> ShapeTable:
    lines = lines_of(path)
    line, head = next(lines, (1, ""))
    heads = head.split(";")
    if heads[0] != "time":
        raise ValueError(f"{path}:{line}: the first column must be 'time', with ; between columns")
    stem = [h.removesuffix("_pload") for h in heads] if kind == "load" else heads
    pairs = {f"{kind}.{s}": i for i, s in enumerate(stem) if i and not s.endswith("_qload")}
    names = [name for name in pairs if wanted is None or name in wanted]
    p_at = [pairs[name] for name in names]
    q_at = []
    if kind == "load":
        missing = next((n for n in names if f"{n.removeprefix('load.')}_qload" not in heads), None)
        if missing:
            raise ValueError(f"{path}:{line}: {missing} has a column _pload but none _qload")
        q_at = [heads.index(f"{n.removeprefix('load.')}_qload") for n in names]
    kept: list[str] = []
    values = values_of(path, _keep(lines, kept), ";", len(heads), p_at + q_at)
    p = values[:, : len(names)]
    q = values[:, len(names) :] if q_at else np.ones_like(p)
    return ShapeTable(tuple(names), p, q, (False,) * len(names), _clock(path, kept) * np.arange(len(p)))


def _keep(lines: Iterator[tuple[int, str]], kept: list[str]) -> Iterator[tuple[int, str]]:
    """The lines, with the first two times kept."""
    for number, line in lines:
        if len(kept) < 2:
            kept.append(line.split(";", 1)[0])
        yield number, line


def _clock(path: Path, times: list[str]) -> float:
    """Hours from the first time to the second."""
    minutes = []
    for time in times:
        match = re.fullmatch(r"\d\d\.\d\d\.\d{4} (\d\d):(\d\d)", time.strip())
        if match is None:
            raise ValueError(f"{path}: the time {time[:40]!r} is not of the form 31.12.2016 23:45")
        minutes.append(60 * int(match[1]) + int(match[2]))
    if len(minutes) < 2 or minutes[1] <= minutes[0]:
        raise ValueError(f"{path}: the second line must be later than the first, on the same day")
    return (minutes[1] - minutes[0]) / 60


def _simbench_elements(path: Path, kind: str) -> dict[str, str]:
    lines = lines_of(path)
    line, head = next(lines, (1, ""))
    heads = head.split(";")
    if not {"id", "profile"} <= set(heads):
        raise ValueError(f"{path}:{line}: needs the columns 'id' and 'profile', with ; between columns")
    name, profile = heads.index("id"), heads.index("profile")
    out = {}
    for number, text in lines:
        cells = text.split(";")
        if len(cells) != len(heads):
            raise ValueError(f"{path}:{number}: {len(cells)} values where the header names {len(heads)} columns")
        out[f"{kind}.{cells[name].lower()}"] = f"{kind}.{cells[profile]}"
    return out
