"""OpenDSS's load shapes: `read_load_shapes`, what every element follows in a daily, yearly or duty run.

The engine itself (dss-python) reads the script, as in `gridjax.io.opendss`; its rules, which were found by running it:

- A step that ends at hour t takes, of a shape with a fixed interval T, point round(t/T), counted from 1, with halves
  rounded to even; 0 and numbers beyond the last wrap around. A shape that lists its hours is linear between them, and
  begins anew at 0 after the last.
- Without `qmult` the reactive power has the multiplier of the active. A shape with `useactual` gives loads and
  generators kW and kvar themselves, and no kvar without `qmult`; arrays and batteries take it as factors all the same.
- Without a duty shape the daily one serves; without a yearly one too, but not for generators. Without any the element
  stays as it is, and so does one with `status=fixed`.
- A photovoltaic array's shape is a factor on its irradiance; a temperature shape gives its temperature. Once off, its
  inverter comes on again where the panels reach the cut-in. A battery follows its shape with `dispmode=follow` alone,
  with its rating as the base; at 0 it idles.
"""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import numpy as np

from gridjax.feeder import Feeder, PVSystem
from gridjax.generation import curve_value, idling_kw, pv_power
from gridjax.io.opendss import _engine, _properties, _run
from gridjax.io.profiles import ShapeTable

MODES = ("daily", "yearly", "duty")
HALF = 1e-9  # of an interval: rounding that must not move a time off a half


def read_load_shapes(
    path: str | Path, feeder: Feeder, *, mode: str = "daily", step_hours: float = 1.0, steps: int | None = None
) -> ShapeTable:
    """Reads which loads, generators, photovoltaics and batteries follow which shape, step by step.

    Args:
      path: the script that `feeder` was read from.
      feeder: as `read_opendss` gave it: its nominal powers have the load multiplier and the growth in them.
      mode: "daily", "yearly" or "duty".
      step_hours: length of a step; the first ends at this hour.
      steps: how many; None is a day, or for "yearly" 8760 h.

    Returns:
      A table with a column for each load shape, and one of kW and kvar for each array and battery that follows a shape.

    Raises:
      ImportError: dss-python is not installed.
      FileNotFoundError: there is no such script.
      ValueError: the engine refuses the script, or something in it has no equal; the message names it.

    Warns:
      UserWarning: an element with a shape is not in the feeder; the message names it.
    """
    path = Path(path)
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")
    if not step_hours > 0 or (steps is not None and steps < 1):
        raise ValueError("a run needs step_hours above 0 and at least one step")
    if not path.is_file():
        raise FileNotFoundError(f"there is no OpenDSS script {str(path)!r}")
    with _engine() as engine:
        _run(engine, path)
        properties, multiplier = _properties(engine.ActiveCircuit), engine.ActiveCircuit.Solution.LoadMult
    exempt = [n for n, data in properties.get("load", {}).items() if str(data["Status"]).lower() == "exempt"]
    if mode == "yearly" and exempt and multiplier != 1:
        raise ValueError(
            f"{path}: load.{exempt[0]}: in a yearly run the engine applies the load multiplier to status=exempt too, "
            "which the feeder's snapshot does not have: set loadmult=1, or the status to variable"
        )
    hour = step_hours * np.arange(1, 1 + (steps or round((8760 if mode == "yearly" else 24) / step_hours)))
    return _Reader(path, feeder, mode, hour, properties).table()


@dataclasses.dataclass
class _Reader:
    """The columns found so far."""

    path: Path
    feeder: Feeder
    mode: str
    hour: np.ndarray
    properties: dict[str, dict[str, dict]]
    columns: dict[str, tuple[np.ndarray, np.ndarray, bool]] = dataclasses.field(default_factory=dict)
    who: dict[str, str] = dataclasses.field(default_factory=dict)

    def table(self) -> ShapeTable:
        """All columns."""
        for kind in ("load", "generator"):
            rows = {r.name.lower() for r in (self.feeder.loads if kind == "load" else self.feeder.generators)}
            for name, shape in self.followers(kind, rows):
                if str(self.properties[kind][name].get("Status", "")).lower() != "fixed":
                    self.columns.setdefault(shape, self.shape(shape))
                    self.who[f"{kind}.{name}"] = shape
        self.photovoltaics()
        self.batteries()
        names = tuple(self.columns)
        none = np.zeros((len(self.hour), 0))
        p, q = (np.stack([self.columns[n][i] for n in names], 1) if names else none for i in (0, 1))
        return ShapeTable(names, p, q, tuple(self.columns[n][2] for n in names), self.hour, self.who)

    def followers(self, kind: str, rows: set[str]):
        """Enabled elements of a kind and the shapes that they follow."""
        for name, data in self.properties.get(kind, {}).items():
            shape = self.followed(kind, data)
            if shape is None or not data.get("Enabled", True):
                continue
            if name in rows:
                yield name, shape
            else:
                warnings.warn(
                    f"{self.path.name}: {kind}.{name} follows the shape {shape!r}, but is not in the feeder as such; "
                    "it stays as it is",
                    UserWarning,
                    stacklevel=4,
                )

    def followed(self, kind: str, data: dict, letter: str = "") -> str | None:
        """The shape of this mode, lower case; `letter` T for temperatures."""
        if self.mode == "duty" and data.get("DutyStart"):
            raise ValueError(f"{self.path}: {kind}.{data['Name']}: DutyStart has no equal; leave it at 0")
        shape = data.get(f"{letter}{self.mode.capitalize()}")
        if not shape and (self.mode == "duty" or kind != "generator"):
            shape = data.get(f"{letter}Daily")
        return str(shape).lower() if shape else None

    def shape(self, name: str) -> tuple[np.ndarray, np.ndarray, bool]:
        """A load shape's factors on P and Q at every step, or kW and kvar."""
        data = self.properties["loadshape"][name]
        if str(data.get("Interpolation", "Avg")).lower() != "avg":
            raise ValueError(f"{self.path}: loadshape.{name}: interpolation={data['Interpolation']} has no equal")
        p, actual = self.sampled("loadshape", name, data["Mult"]), bool(data["UseActual"])
        if data.get("QMult"):
            return p, self.sampled("loadshape", name, data["QMult"]), actual
        return p, np.zeros_like(p) if actual else p, actual

    def sampled(self, kind: str, name: str, points: list[float] | None) -> np.ndarray:
        """A shape's points at every step."""
        data = self.properties[kind][name]
        if not points or not np.isfinite(points).all():
            raise ValueError(
                f"{self.path}: {kind}.{name} has no points; give its {'mult' if kind == 'loadshape' else 'temp'}"
            )
        values, interval = np.asarray(points, float), float(data["Interval"])
        if interval > 0:
            place = self.hour / interval
            half = np.floor(place) + 0.5
            place = np.where(np.abs(place - half) <= HALF * np.maximum(place, 1), half, place)
            return values[(np.round(place).astype(int) - 1) % len(values)]
        hours = np.asarray(data["Hour"] or [], float)
        if len(hours) != len(values) or (np.diff(hours) <= 0).any():
            raise ValueError(f"{self.path}: {kind}.{name}: interval=0 needs as many rising hours as points")
        again = (self.hour > hours[-1]) & (hours[-1] > 0)
        inside = np.where(again, self.hour % max(hours[-1], 1e-9), self.hour)
        return np.interp(inside, hours, values)

    def photovoltaics(self) -> None:
        """The kW and kvar of each array that follows a shape of irradiance or of temperature."""
        records = {pv.name.lower(): pv for pv in self.feeder.pv_systems}
        for name, data in self.properties.get("pvsystem", {}).items():
            heat = self.followed("pvsystem", data, "T")
            if heat is not None and name in records and self.followed("pvsystem", data) is None:
                self.array(name, records[name], np.ones_like(self.hour), heat)
        for name, shape in self.followers("pvsystem", set(records)):
            heat = self.followed("pvsystem", self.properties["pvsystem"][name], "T")
            self.array(name, records[name], self.shape(shape)[0], heat)

    def array(self, name: str, pv: PVSystem, factor: np.ndarray, heat: str | None) -> None:
        """One array's column."""
        temperature = np.full_like(self.hour, pv.temperature_c)
        if heat is not None:
            temperature = self.sampled("tshape", heat, self.properties["tshape"][heat]["Temp"])
        irradiance = pv.irradiance * factor
        kw, kvar = np.empty_like(self.hour), np.empty_like(self.hour)
        on, known = True, {}
        for k, (sun, celsius) in enumerate(zip(irradiance.tolist(), temperature.tolist(), strict=True)):
            panel_kw = sun * pv.pmpp_kw * curve_value(pv.power_curve, celsius)
            on = panel_kw >= (pv.cut_out_percent if on else pv.cut_in_percent) / 100 * pv.kva
            at = (sun, celsius) if on else (0.0, 0.0)
            if at not in known:
                cut_out = 0.0 if on else pv.cut_out_percent
                state = dataclasses.replace(
                    pv, irradiance=sun if on else 0.0, temperature_c=celsius, cut_out_percent=cut_out
                )
                known[at] = pv_power(state)
            kw[k], kvar[k] = known[at]
        self.columns[f"pvsystem.{name}"] = (kw, kvar, True)
        self.who[f"pvsystem.{name}"] = f"pvsystem.{name}"

    def batteries(self) -> None:
        """What is asked of each battery that follows a shape."""
        records = {s.name.lower(): s for s in self.feeder.storages}
        for name, data in self.properties.get("storage", {}).items():
            mode = str(data["DispMode"]).lower()
            if self.followed("storage", data) is not None and mode != "follow":
                warnings.warn(
                    f"{self.path.name}: storage.{name} has a shape but dispmode={mode}, whose triggers are not read; "
                    "it stays as it is",
                    UserWarning,
                    stacklevel=4,
                )
        for name, shape in self.followers("storage", set(records)):
            if str(self.properties["storage"][name]["DispMode"]).lower() != "follow":
                continue
            record = records[name]
            factor = self.shape(shape)[0]
            kw = np.where(factor == 0, idling_kw(record), factor * record.kw_rated)
            self.columns[f"storage.{name}"] = (kw, np.full_like(kw, record.kvar), True)
            self.who[f"storage.{name}"] = f"storage.{name}"
