"""The engine's loads, generators, photovoltaic systems and batteries as records.

Their powers are those of the present snapshot. For a load or a generator they are read off the
engine's primitive admittance, which is that of the demand at nominal voltage, `(P - jQ)/VB^2` a
phase: multipliers, growth, allocation and dispatch are all in it. Where that equals a number that
the script wrote, the script's digits are kept.
"""

from __future__ import annotations

import math

import numpy as np

from gridjax.feeder import Generator, Load, Matrix, PVSystem, Storage
from gridjax.generation import pv_power
from gridjax.io.opendss_tables import Element, Tables

SHAPES = ("Yearly", "Daily", "Duty", "TYearly", "TDaily", "TDuty")
LOOSE = 1e-2  # the script's own tolerance may be a loose one
SAME = 1e-6  # of the rating: how well the engine's solution tells an inverter's power


def load(tables: Tables, element: Element) -> None:
    """Reads a Load."""
    _require_plain(element)
    data = element.data
    if data["RNeut"] >= 0 and not element.terminals[0].endswith(".0"):
        raise element.refuse(
            "rneut ties its neutral to ground inside the load",
            "put a Reactor of that impedance between the neutral node and ground in its place",
        )
    model = data["Model"]
    if tables.admittance_loads and model != 2:
        tables.note_group("loadmodel=admittance: read as model 2", element.full_name)
        model = 2
    _note_shapes(tables, element)
    voltage = _load_volts(element)
    power = _nominal(element, voltage, delta_third=False)
    pu = np.abs(_across(element)) / (1e3 * voltage)
    in_band = (pu > data["VMinpu"]).all() and (pu < data["VMaxpu"]).all()
    if model == 1 and in_band and abs(element.power - power) > LOOSE * abs(power):
        raise element.refuse(
            f"the engine draws {element.power:.6g} kVA where it says {power:.6g} kVA",
            "write its kw and kvar without multipliers",
        )
    tables.add(
        Load(
            name=element.name,
            bus=element.terminal(),
            phases=element.phases,
            connection=data["Conn"],
            model=model,
            kv=data["kV"],
            kw=_given(power.real, abs(power), data["kW"]),
            kvar=_given(power.imag, abs(power), data["kvar"]),
            vmin_pu=data["VMinpu"],
            vmax_pu=data["VMaxpu"],
            vlow_pu=data["VLowpu"],
            zipv=tuple(data["ZIPV"]) if model == 8 else None,
            cvr_watts=data["CVRWatts"],
            cvr_vars=data["CVRVars"],
        )
    )


def generator(tables: Tables, element: Element) -> None:
    """Reads a Generator as it is dispatched now."""
    _require_plain(element)
    _require_models(tables, element, (1, 2))
    data = element.data
    _note_shapes(tables, element)
    power = -_nominal(element, _machine_volts(element), delta_third=True)
    _require_same(element, power)
    tables.add(
        Generator(
            name=element.name,
            bus=element.terminal(),
            phases=element.phases,
            connection=data["Conn"],
            kv=data["kV"],
            kw=_given(power.real, abs(power), data["kW"]),
            kvar=_given(power.imag, abs(power), data["kvar"]),
            model=data["Model"],
            vmin_pu=data["VMinpu"],
            vmax_pu=data["VMaxpu"],
            kva=data["kVA"],
        )
    )


def pv_system(tables: Tables, element: Element) -> None:
    """Reads a PVSystem at its present irradiance, temperature and reactive power."""
    _require_plain(element)
    _require_models(tables, element, (1, 2))
    _require_inverter(element)
    _note_shapes(tables, element)
    data = element.data
    record = PVSystem(
        name=element.name,
        bus=element.terminal(),
        phases=element.phases,
        connection=data["Conn"],
        kv=data["kV"],
        kva=data["kVA"],
        pmpp_kw=data["Pmpp"],
        irradiance=data["Irradiance"],
        temperature_c=data["Temperature"],
        power_curve=_curve(tables, data["PTCurve"]),
        efficiency_curve=_curve(tables, data["EffCurve"]),
        kvar=data["kvar"] + 0.0,  # no -0.0
        kvar_max=_limit(data["kvarMax"], data["kVA"]),
        kvar_max_abs=_limit(data["kvarMaxAbs"], data["kvarMax"]),
        pmpp_percent=data["pctPmpp"],
        cut_in_percent=data["pctCutIn"],
        cut_out_percent=data["pctCutOut"],
        watt_priority=data["WattPriority"],
        model=data["Model"],
        vmin_pu=data["VMinpu"],
        vmax_pu=data["VMaxpu"],
    )
    asked, found = complex(*pv_power(record)), _delivered(element)
    if abs(asked - found) <= SAME * record.kva:
        tables.add(record)
        return
    tables.note(
        f"{element.full_name} is read as a Generator of constant {found.real:.6g} kW and "
        f"{found.imag:.6g} kvar: its irradiance and curves would give {asked.real:.6g} kW and "
        f"{asked.imag:.6g} kvar"
    )
    tables.add(
        Generator(
            name=element.name,
            bus=record.bus,
            phases=record.phases,
            connection=record.connection,
            kv=record.kv,
            kw=found.real,
            kvar=found.imag,
            model=record.model,
            vmin_pu=record.vmin_pu,
            vmax_pu=record.vmax_pu,
            kva=record.kva,
        )
    )


def storage(tables: Tables, element: Element) -> None:
    """Reads a Storage in its present state."""
    _require_plain(element)
    _require_models(tables, element, (1, 2))
    _require_inverter(element)
    _note_shapes(tables, element)
    data = element.data
    if data["EffCurve"]:
        tables.note_group("the efficiency curve is left out", element.full_name)
    power = complex(data["kW"], data["kvar"])
    _require_same(element, power)
    tables.add(
        Storage(
            name=element.name,
            bus=element.terminal(),
            phases=element.phases,
            connection=data["Conn"],
            kv=data["kV"],
            kva=data["kVA"],
            kw_rated=data["kWRated"],
            kwh_rated=data["kWhRated"],
            kwh_stored=data["kWhStored"],
            kw=_clean(data["kW"]),
            kvar=_clean(data["kvar"]),
            reserve_percent=data["pctReserve"],
            charge_efficiency_percent=data["pctEffCharge"],
            discharge_efficiency_percent=data["pctEffDischarge"],
            idling_percent=data["pctIdlingkW"],
            model=data["Model"],
            vmin_pu=data["VMinpu"],
            vmax_pu=data["VMaxpu"],
        )
    )


def _require_same(element: Element, power: complex) -> None:
    found = _delivered(element)
    if abs(power - found) > SAME * max(element.data["kVA"], abs(power)):
        raise element.refuse(
            f"the engine delivers {found.real:.6g} kW and {found.imag:.6g} kvar where its state says "
            f"{power.real:.6g} kW and {power.imag:.6g} kvar",
            "put a Generator of model 1 and that power in its place",
        )


def _require_plain(element: Element) -> None:
    if element.phases > 3:
        raise element.refuse(f"it has {element.phases} phases", "split it into three or fewer")
    if element.is_open:
        raise element.refuse("it has open conductors", "disable it")


def _require_models(tables: Tables, element: Element, models: tuple[int, ...]) -> None:
    model = element.data["Model"]
    if model not in models:
        raise element.refuse(f"model={model} has no equal", f"use one of {models}")
    if tables.admittance_loads:
        raise element.refuse("loadmodel=admittance makes it a constant admittance", "set loadmodel=powerflow")


def _require_inverter(element: Element) -> None:
    data = element.data
    odd = [key for key in ("LimitCurrent", "Balanced", "PFPriority", "SafeMode") if data[key]]
    odd += [key for key in ("pctPMinNoVars", "pctPMinkvarMax") if data[key] > 0]
    if str(data["ControlMode"]).upper() != "GFL":
        odd.append(f"ControlMode={data['ControlMode']}")
    if odd:
        raise element.refuse(f"{', '.join(odd)} has no equal", "leave it at its default")


def _note_shapes(tables: Tables, element: Element) -> None:
    if any(element.data.get(key) for key in SHAPES):
        tables.note_group("daily, yearly and duty shapes are not read", element.full_name)


def _load_volts(element: Element) -> float:
    """The voltage of one phase's share of a load, in kV."""
    split = element.data["Conn"] == "wye" and element.phases in (2, 3)
    return element.data["kV"] / math.sqrt(3) if split else element.data["kV"]


def _machine_volts(element: Element) -> float:
    """The same for a generator or inverter, which is reckoned to neutral in delta too."""
    kv = element.data["kV"]
    return kv / math.sqrt(3) if element.phases in (2, 3) else kv


def _nominal(element: Element, kv: float, delta_third: bool) -> complex:
    """Consumed kW + j kvar at nominal voltage, from the engine's primitive admittance."""
    if element.data["Conn"] == "wye":
        y = element.y[0, 0]
    else:
        y = -element.y[0, 1] * (3 if delta_third else 1)
    return complex(np.conj(y)) * kv**2 * element.phases * 1e3


def _delivered(element: Element) -> complex:
    """The kW + j kvar that an inverter delivers, reckoned from the solution to nominal voltage.

    The primitive admittance will not do: it may hold what was there before the controls acted.
    """
    data = element.data
    delta = data["Conn"] == "delta"
    root = math.sqrt(3) if delta and element.phases > 1 else 1.0
    pu = np.abs(_across(element)) / (root * 1e3 * _machine_volts(element))
    impedance = pu**2 / (3 if delta and element.phases == 1 else 1)  # that 3 is the engine's
    response = impedance
    if data["Model"] == 1:
        low, high = data["VMinpu"], data["VMaxpu"]
        response = np.select([pu < low, pu > high], [impedance / low**2, impedance / high**2], 1.0)
    mean = response.mean()
    return -element.power / mean if mean > 0 else 0j


def _across(element: Element) -> np.ndarray:
    """The voltages across the phases (wye) or between them (delta), in V."""
    v = element.volts
    if element.data["Conn"] == "wye":
        return v[: element.phases] - v[element.phases]
    return (v - np.roll(v, -1))[: element.phases]


def _clean(value: float) -> float:
    """A number without the noise of its last bits, and without a sign if it is zero."""
    return float(f"{value:.14g}") + 0.0


def _given(measured: float, scale: float, written: float) -> float:
    """The number that the script wrote, if the measured one equals it up to rounding."""
    if abs(written - measured) <= 1e-10 * scale:
        return float(written) + 0.0  # no -0.0
    return _clean(measured)


def _limit(value: float, default: float) -> float | None:
    return None if value == default else value


def _curve(tables: Tables, name: str | None) -> Matrix | None:
    """An XYCurve's points with its shifts and scales in them."""
    if not name:
        return None
    data = tables.properties["xycurve"][name.lower().rpartition(".")[2]]
    x = tuple(v * data["XScale"] + data["XShift"] for v in data["XArray"])
    y = tuple(v * data["YScale"] + data["YShift"] for v in data["YArray"])
    return x, y
