"""The engine's elements as records, class by class; for what injects see `opendss_loads`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from gridjax.feeder import (
    KM_PER_UNIT,
    Capacitor,
    Geometry,
    Line,
    LineCode,
    Matrix,
    Reactor,
    SequenceCode,
    Source,
    Switch,
    Transformer,
    Winding,
    Wire,
)
from gridjax.io.opendss_check import as_admittance
from gridjax.io.opendss_controls import capacitor_control, regulator
from gridjax.io.opendss_loads import generator, load, pv_system, storage
from gridjax.io.opendss_tables import Element, Tables

LINEAR = {
    "vsource",
    "line",
    "transformer",
    "capacitor",
    "reactor",
    "fault",
    "autotrans",
    "gictransformer",
}
METERS = {"energymeter", "monitor", "sensor", "fmonitor"}
CONTROLS = {
    "regcontrol",
    "capcontrol",
    "invcontrol",
    "expcontrol",
    "storagecontroller",
    "gendispatcher",
    "upfccontrol",
    "espvlcontrol",
    "relay",
    "recloser",
    "fuse",
    "swtcontrol",
}
OPEN_S = 1e-11  # an open conductor leaves 1e-12 S on the engine's diagonal


def read_element(tables: Tables, element: Element) -> Any:
    """Adds an element's record to the tables, or a warning.

    Returns:
      The record to compare with the engine's admittance, or None.

    Raises:
      ValueError: the element has no equal in the tables.
    """
    if not element.enabled:
        tables.note_group("disabled elements are left out", element.full_name)
        return None
    if element.kind in METERS:
        tables.note_group("meters are left out; they change no flow", element.full_name)
        return None
    if element.kind in CONTROLS and element.kind not in READERS:
        tables.note_group(
            "controls without a table are left out; what they control stays in its present state",
            element.full_name,
        )
        return None
    if element.kind in LINEAR and element.is_open:
        return _opened(tables, element)
    if element.kind in READERS:
        return READERS[element.kind](tables, element)
    if element.kind in LINEAR:
        return _generic(tables, element, f"there is no table for {element.kind}")
    raise element.refuse(
        f"there is no table for {element.kind}, which is not a constant admittance",
        "disable it or put a Load or a Generator in its place",
    )


def _generic(tables: Tables, element: Element, reason: str) -> None:
    tables.note_constant(element, reason)
    tables.add(as_admittance(element))


def _opened(tables: Tables, element: Element) -> None:
    """An element with conductors that an `open` command or a control cut."""
    if element.kind == "vsource":
        raise element.refuse("it has open conductors", "disable it")
    if element.kind not in ("line", "capacitor") or np.abs(element.y).max() > OPEN_S:
        return _generic(tables, element, "it has open conductors")
    if element.kind == "capacitor":  # how a CapControl switches its last step off
        _capacitor(tables, element, is_open=True)
        return None
    r, x = _total(element)
    tables.add(_switch(element, closed=False, r_ohm=r, x_ohm=x))
    if not _is_switch(element):
        tables.note(
            f"{element.full_name} is open and read as a Switch; once closed it would be its "
            "positive-sequence impedance alone"
        )
    return None


def _source(tables: Tables, element: Element) -> Source:
    data = element.data
    if any(node != "0" for node in element.terminals[1].split(".")[1:]):
        raise element.refuse("its second terminal is not grounded", "ground it")
    if data["Model"] != "Thevenin" or data["Sequence"] != "Positive":
        raise element.refuse(
            f"model={data['Model']} sequence={data['Sequence']} has no equal",
            "use model=Thevenin sequence=Positive",
        )
    if data["Frequency"] != tables.frequency:
        raise element.refuse(
            f"its frequency is {data['Frequency']:g} Hz, the circuit's {tables.frequency:g} Hz",
            "make them equal",
        )
    r1, x1, r0, x0 = (data[key] for key in ("R1", "X1", "R0", "X0"))
    r2, x2 = data["Z2"]
    if element.phases == 1:
        r1, x1 = (2 * r1 + r0) / 3, (2 * x1 + x0) / 3
        r0, x0, r2, x2 = r1, x1, r1, x1
    return tables.add(
        Source(
            name=element.name,
            bus=element.terminal(0),
            base_kv=data["BasekV"],
            pu=data["pu"],
            angle_deg=data["Angle"],
            r1_ohm=r1,
            x1_ohm=x1,
            r0_ohm=r0,
            x0_ohm=x0,
            r2_ohm=None if r2 == r1 else r2,
            x2_ohm=None if x2 == x1 else x2,
        )
    )


# --- Lines. ---


def _is_switch(element: Element) -> bool:
    data = element.data
    return bool(
        data["Switch"]
        and data["R1"] is not None
        and data["C1"] == data["C0"] == 0
        and data["R1"] == data["R0"]
        and data["X1"] == data["X0"]
    )


def _total(element: Element) -> tuple[float, float]:
    """The positive-sequence impedance of the whole line in ohm."""
    data = element.data
    if data["R1"] is not None:
        return data["R1"] * data["Length"], data["X1"] * data["Length"]
    z = np.array(data["RMatrix"]) + 1j * np.array(data["XMatrix"])
    n = len(z)
    own = np.trace(z) / n
    mutual = (z.sum() - np.trace(z)) / (n * (n - 1)) if n > 1 else 0.0
    z1 = complex(own - mutual) * data["Length"]
    return z1.real, z1.imag


def _switch(element: Element, closed: bool, r_ohm: float, x_ohm: float) -> Switch:
    return Switch(
        name=element.name,
        bus1=element.terminal(0),
        bus2=element.terminal(1),
        closed=closed,
        r_ohm=r_ohm,
        x_ohm=x_ohm,
        rating_a=element.data["NormAmps"],
    )


def _line(tables: Tables, element: Element) -> Line | Switch:
    if _is_switch(element):
        return tables.add(_switch(element, True, *_total(element)))
    data = element.data
    return tables.add(
        Line(
            name=element.name,
            bus1=element.terminal(0),
            bus2=element.terminal(1),
            code=tables.add_code(_code(tables, element)),
            length=data["Length"],
            unit=data["Units"],
            rating_a=data["NormAmps"],
        )
    )


def _code(tables: Tables, element: Element) -> LineCode | SequenceCode | Geometry:
    data = element.data
    if data["Geometry"] or data["Spacing"]:
        return _geometry(tables, element)
    if data["LineCode"]:
        name = data["LineCode"].lower()
        code = _values(name, element.phases, tables.properties["linecode"][name])
        if _same(code, element):
            return code
    return _values(f"line_{element.name}", element.phases, data)


def _values(name: str, phases: int, data: dict) -> LineCode | SequenceCode:
    """The code in a LineCode's or a Line's own properties, per unit of its own length unit."""
    if data["R1"] is not None:
        r1, x1, r0, x0 = (data[key] for key in ("R1", "X1", "R0", "X0"))
        c1, c0 = _clean(data["C1"]), _clean(data["C0"])
        return SequenceCode(name, phases, r1, x1, r0, x0, c1, c0, data["Units"])
    r, x, c = (_matrix(data[key]) for key in ("RMatrix", "XMatrix", "CMatrix"))
    return LineCode(name, r, x, tuple(tuple(map(_clean, row)) for row in c), data["Units"])


def _matrix(rows: list[list[float]]) -> Matrix:
    return tuple(tuple(map(float, row)) for row in rows)


def _clean(value: float) -> float:
    """A number without the last bits' noise of a change of units, or of many tap steps."""
    return float(f"{value:.15g}")


def _same(code: LineCode | SequenceCode, element: Element) -> bool:
    """Whether the line still has its code's values."""
    data = element.data
    units = (code.unit, data["Units"])
    factor = 1.0 if "none" in units else KM_PER_UNIT[units[1]] / KM_PER_UNIT[units[0]]
    if isinstance(code, SequenceCode):
        if data["R1"] is None:
            return False
        keys = ("R1", "X1", "C1") if element.phases == 1 else ("R1", "X1", "R0", "X0", "C1", "C0")
        pairs = [(getattr(code, key.lower()), data[key]) for key in keys]
        return all(math.isclose(a * factor, b, rel_tol=1e-9) for a, b in pairs)
    if data["R1"] is not None:
        return False
    matrices = ((code.r, "RMatrix"), (code.x, "XMatrix"), (code.c, "CMatrix"))
    return all(np.allclose(np.array(m) * factor, data[k], rtol=1e-9, atol=0.0) for m, k in matrices)


def _geometry(tables: Tables, element: Element) -> Geometry | LineCode | SequenceCode:
    """A geometry of bare wires; of anything else the engine's matrices."""
    data = element.data
    shape = tables.properties["linegeometry"][data["Geometry"].lower()] if data["Geometry"] else {}
    conductors = shape.get("Wire") or shape.get("Conductors") or []
    kinds = {str(wire).lower().partition(".")[0] for wire in conductors}
    if kinds != {"wiredata"} or shape["Spacing"]:
        tables.note_group(
            f"lines of cables or spacings are read as the engine's matrices at {tables.frequency:g} Hz",
            element.full_name,
        )
        return _values(f"line_{element.name}", element.phases, data)
    names = tuple(str(wire).lower().partition(".")[2] for wire in conductors)
    for name in names:
        tables.wires.setdefault(name, _wire(name, tables.properties["wiredata"][name]))
    metres = [1e3 * KM_PER_UNIT[unit] for unit in shape["Units"]]
    return Geometry(
        name=data["Geometry"].lower(),
        phases=element.phases,
        wires=names,
        x_m=tuple(_clean(x * m) for x, m in zip(shape["X"], metres, strict=True)),
        h_m=tuple(_clean(h * m) for h, m in zip(shape["H"], metres, strict=True)),
        rho_ohm_m=data["rho"],
        earth_model=data["EarthModel"].lower(),
    )


def _wire(name: str, data: dict) -> Wire:
    length, gmr, radius = (KM_PER_UNIT[data[key].lower()] for key in ("RUnits", "GMRUnits", "RadUnits"))
    outer = data["Radius"] * radius * 1e3
    cap = data["CapRadius"] * radius * 1e3
    return Wire(
        name=name,
        r_dc_ohm_per_km=data["RDC"] / length,
        r_ac_ohm_per_km=data["RAC"] / length,
        gmr_m=data["GMRAC"] * gmr * 1e3,
        radius_m=outer,
        cap_radius_m=None if cap == outer else cap,
    )


# --- Transformers, capacitors, reactors. ---


def conductors(phases: int, connection: str) -> int:
    """How many conductors a wye or a delta has."""
    if connection == "wye":
        return phases + 1
    return phases if phases > 2 else phases + 1


def _transformer(tables: Tables, element: Element) -> Transformer:
    data = element.data
    windings = []
    for i in range(len(element.terminals)):
        r_neutral = data["RNeut"][i]
        windings.append(
            Winding(
                bus=element.terminal(i, conductors(element.phases, data["Conns"][i])),
                connection=data["Conns"][i],
                kv=data["kVs"][i],
                kva=data["kVAs"][i],
                r_percent=data["pctRs"][i],
                tap=_clean(data["Taps"][i]),
                min_tap=data["MinTap"][i],
                max_tap=data["MaxTap"][i],
                num_taps=data["NumTaps"][i],
                r_neutral_ohm=None if r_neutral < 0 else r_neutral,
                x_neutral_ohm=0.0 if r_neutral < 0 else data["XNeut"][i],
            )
        )
    return tables.add(
        Transformer(
            name=element.name,
            phases=element.phases,
            windings=tuple(windings),
            x_percent=tuple(data["XSCArray"]),
            no_load_loss_percent=data["pctNoLoadLoss"],
            magnetizing_percent=data["pctIMag"],
            antifloat_ppm=data["ppm_Antifloat"],
            lead_lag="lead" if data["LeadLag"].lower() in ("lead", "euro") else "lag",
            bank=data["Bank"].lower() or None,
        )
    )


def _capacitor(tables: Tables, element: Element, is_open: bool = False) -> Capacitor:
    data = element.data
    wye = data["Conn"] == "wye"
    kv = data["kV"] / math.sqrt(3) if wye and element.phases in (2, 3) else data["kV"]
    per_microfarad = 2e-3 * math.pi * tables.frequency * kv**2 * element.phases
    kvar = [
        given if math.isclose(given, c * per_microfarad, rel_tol=1e-9) else _clean(c * per_microfarad)
        for given, c in zip(data["kvar"], data["Cuf"], strict=True)
    ]
    if kvar[0] == data["kvar"][0] and kvar != data["kvar"]:
        tables.note(
            f"{element.full_name} has steps of {kvar[0]:g} kvar each, as the engine gives every step "
            "the kvar of the first"
        )
    return tables.add(
        Capacitor(
            name=element.name,
            bus1=element.terminal(0, None if wye else conductors(element.phases, "delta")),
            phases=element.phases,
            connection=data["Conn"],
            kv=data["kV"],
            kvar=tuple(kvar),
            closed=tuple(state != 0 and not is_open for state in data["States"]),
            bus2=element.terminal(1) if wye else None,
            r_ohm=tuple(data["R"]) if any(data["R"]) else (),
            xl_ohm=tuple(data["XL"]) if any(data["XL"]) else (),
        )
    )


def _reactor(tables: Tables, element: Element) -> Reactor:
    data = element.data
    wye = data["Conn"] == "wye"
    return tables.add(
        Reactor(
            name=element.name,
            bus1=element.terminal(0, None if wye else conductors(element.phases, "delta")),
            phases=element.phases,
            connection=data["Conn"],
            r_ohm=data["R"],
            x_ohm=data["X"],
            rp_ohm=data["Rp"] or None,
            bus2=element.terminal(1) if wye else None,
        )
    )


READERS: dict[str, Callable[[Tables, Element], Any]] = {
    "vsource": _source,
    "line": _line,
    "transformer": _transformer,
    "capacitor": _capacitor,
    "reactor": _reactor,
    "regcontrol": regulator,
    "capcontrol": capacitor_control,
    "load": load,
    "generator": generator,
    "pvsystem": pv_system,
    "storage": storage,
}
