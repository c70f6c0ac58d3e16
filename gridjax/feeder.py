"""The feeder: frozen tables of everything that a person writes down about a distribution circuit.

A `Feeder` lives on the host and holds plain Python numbers: nothing here knows of JAX. `gridjax.compile`
turns it into arrays. Vocabulary:

- *Bus*: a place. Its conductors are *nodes*, numbered as in OpenDSS: 1, 2, 3 are the phases (on a
  centre-tapped service 1 and 2 are the two legs), 4 and higher are explicit neutrals or further conductors,
  and 0 is the ground, which is never listed.
- *Terminal*: the string `"bus.n1.n2..."` which says to which nodes an element's conductors are tied, in
  order, for example `"671.1.2.3"`, `"645.2.0"` (phase 2 to ground) or `"646.2.3"` (between two phases).
- A wye element of p phases has p + 1 conductors, the last one its neutral (`0` when it is grounded). A delta
  element has 2 conductors for one phase, 3 for two (open delta) and 3 for three.

Signs: a load is positive when it consumes, a generator when it produces.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

Matrix = tuple[tuple[float, ...], ...]

KM_PER_UNIT = {
    "km": 1.0,
    "m": 1e-3,
    "cm": 1e-5,
    "mm": 1e-6,
    "mi": 1.609344,
    "kft": 0.3048,
    "ft": 0.3048e-3,
    "in": 0.0254e-3,
    "none": 1.0,
}


def split_terminal(terminal: str) -> tuple[str, tuple[int, ...]]:
    """Splits `"671.1.2.3"` into `("671", (1, 2, 3))`.

    Raises:
      ValueError: the text after the bus name is not a list of node numbers.
    """
    bus, *nodes = terminal.split(".")
    try:
        numbers = tuple(int(n) for n in nodes)
    except ValueError:
        numbers = (-1,)
    if not bus or not nodes or min(numbers) < 0:
        raise ValueError(f"terminal {terminal!r} is not of the form 'bus.node[.node...]'")
    return bus, numbers


def join_terminal(bus: str, nodes: tuple[int, ...]) -> str:
    """The inverse of `split_terminal`."""
    return ".".join([bus, *map(str, nodes)])


@dataclass(frozen=True)
class Bus:
    """A place with its nodes; `base_kv` is phase to neutral; `x`, `y` are drawing coordinates."""

    name: str
    base_kv: float
    nodes: tuple[int, ...]
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True)
class Source:
    """A balanced EMF of `pu * base_kv` behind a sequence impedance in ohm.

    `base_kv` is line to line for two or more phases, to ground for one. The terminal has one node a phase; the
    other side of the EMF is the ground. Phase k stands at `angle_deg - 360 k / phases`.
    """

    name: str
    bus: str
    base_kv: float
    pu: float = 1.0
    angle_deg: float = 0.0
    r1_ohm: float = 0.0
    x1_ohm: float = 1e-3
    r0_ohm: float = 0.0
    x0_ohm: float = 1e-3
    r2_ohm: float | None = None  # None: as r1_ohm
    x2_ohm: float | None = None


@dataclass(frozen=True)
class LineCode:
    """Series resistance and reactance (ohm) and capacitance (nF) per `unit` of length, as full matrices."""

    name: str
    r: Matrix
    x: Matrix
    c: Matrix
    unit: str = "km"


@dataclass(frozen=True)
class SequenceCode:
    """Positive- and zero-sequence values per `unit` of length: ohm and nF. One phase uses r1, x1, c1 alone."""

    name: str
    phases: int
    r1: float
    x1: float
    r0: float
    x0: float
    c1: float
    c0: float
    unit: str = "km"


@dataclass(frozen=True)
class Wire:
    """A bare conductor: resistances in ohm/km, radii in m. `cap_radius_m` None: the outer radius."""

    name: str
    r_dc_ohm_per_km: float
    r_ac_ohm_per_km: float
    gmr_m: float
    radius_m: float
    cap_radius_m: float | None = None


@dataclass(frozen=True)
class Geometry:
    """Overhead conductors at `x_m`, `h_m` (height over ground), the first `phases` of them energised.

    The others are grounded neutrals, eliminated by Kron reduction. `earth_model` is one of "deri",
    "carson", "fullcarson"; `rho_ohm_m` is the earth's resistivity.
    """

    name: str
    phases: int
    wires: tuple[str, ...]
    x_m: tuple[float, ...]
    h_m: tuple[float, ...]
    rho_ohm_m: float = 100.0
    earth_model: str = "deri"


@dataclass(frozen=True)
class Line:
    """A series element with shunt capacitance; `code` names a LineCode, SequenceCode or Geometry.

    When the line or its code has the unit "none", the length multiplies the code's values as it stands.
    """

    name: str
    bus1: str
    bus2: str
    code: str
    length: float
    unit: str = "km"
    rating_a: float | None = None


@dataclass(frozen=True)
class Switch:
    """`r_ohm + j x_ohm` in each phase when closed, nothing when open."""

    name: str
    bus1: str
    bus2: str
    closed: bool = True
    r_ohm: float = 1e-4
    x_ohm: float = 0.0
    rating_a: float | None = None


@dataclass(frozen=True)
class Winding:
    """A transformer winding.

    `kv` is line to line for two- and three-phase units, and the winding's own voltage for one phase or delta.
    `r_neutral_ohm` (with `x_neutral_ohm`) ties the neutral conductor of a wye to ground; None leaves it to
    the terminal's last node.
    """

    bus: str
    connection: str
    kv: float
    kva: float
    r_percent: float = 0.2
    tap: float = 1.0
    min_tap: float = 0.9
    max_tap: float = 1.1
    num_taps: int = 32
    r_neutral_ohm: float | None = None
    x_neutral_ohm: float = 0.0


@dataclass(frozen=True)
class Transformer:
    """An n-winding transformer; percentages are on winding 1's kVA.

    `x_percent` lists the short-circuit reactances of the winding pairs in the order 12, 13, ..., 23, ...
    `lead_lag` is "lag" (ANSI, delta-wye shifts -30 degrees) or "lead". `antifloat_ppm` is the small inductive
    shunt which keeps ungrounded windings from floating, in parts per million of the rating.
    """

    name: str
    phases: int
    windings: tuple[Winding, ...]
    x_percent: tuple[float, ...]
    no_load_loss_percent: float = 0.0
    magnetizing_percent: float = 0.0
    antifloat_ppm: float = 1.0
    lead_lag: str = "lag"
    bank: str | None = None


@dataclass(frozen=True)
class Regulator:
    """The tap changer and control of one winding (counted from 1) of a transformer.

    Its tap varies by scenario. Control data as in OpenDSS: `vreg` and `band` in volts on the PT's secondary, line
    drop compensation `r`, `x` in volts at the CT's rated primary current, delays in seconds.
    """

    name: str
    transformer: str
    winding: int
    vreg: float = 120.0
    band: float = 3.0
    pt_ratio: float = 60.0
    ct_primary_a: float = 300.0
    r: float = 0.0
    x: float = 0.0
    pt_phase: int = 1
    delay_s: float = 15.0
    tap_delay_s: float = 2.0
    max_tap_change: int = 16
    inverse_time: bool = False
    monitored_bus: str | None = None
    reversible: bool = False
    reverse_vreg: float = 120.0
    reverse_band: float = 3.0
    reverse_r: float = 0.0
    reverse_x: float = 0.0
    reverse_delay_s: float = 60.0
    reverse_threshold_kw: float = 100.0
    reverse_neutral: bool = False
    voltage_limit: float = 0.0


@dataclass(frozen=True)
class Capacitor:
    """A bank of steps, each `kvar[i]` in total over all phases at `kv`, in service where `closed[i]`.

    `kv` is line to line for two- and three-phase banks, the unit's own voltage for one phase or delta. `bus2` is the
    other terminal of a wye bank (one node a phase, all 0 when it is grounded); None for delta. `r_ohm` and
    `xl_ohm` stand in series with each phase of each step.
    """

    name: str
    bus1: str
    phases: int
    connection: str
    kv: float
    kvar: tuple[float, ...]
    closed: tuple[bool, ...]
    bus2: str | None = None
    r_ohm: tuple[float, ...] = ()
    xl_ohm: tuple[float, ...] = ()


@dataclass(frozen=True)
class CapacitorControl:
    """A capacitor's control, as OpenDSS's CapControl; `kind` is one of voltage, kvar, current, pf, time."""

    name: str
    capacitor: str
    kind: str
    element: str
    terminal: int
    on: float
    off: float
    pt_ratio: float = 60.0
    ct_ratio: float = 60.0
    pt_phase: int = 1
    ct_phase: int = 1
    delay_s: float = 15.0
    delay_off_s: float = 15.0
    dead_time_s: float = 300.0
    voltage_override: bool = False
    vmin: float = 115.0
    vmax: float = 126.0


@dataclass(frozen=True)
class Reactor:
    """`r_ohm + j x_ohm` a phase, in parallel with `rp_ohm` if that is given.

    From `bus1` to `bus2` phase by phase (wye; `bus2` all 0 is a grounded shunt), or between the phases of `bus1`
    (delta, `bus2` None).
    """

    name: str
    bus1: str
    phases: int
    connection: str
    r_ohm: float
    x_ohm: float
    rp_ohm: float | None = None
    bus2: str | None = None


@dataclass(frozen=True)
class Load:
    """A demand; models 1 to 8 as in OpenDSS (see `gridjax.powerflow.injections`).

    `kv` is line to line for two or more phases, and the load's own voltage for one phase. Outside `vmin_pu` to
    `vmax_pu` the load turns into an impedance; below `vlow_pu` it is its nominal impedance. `zipv` (model 8)
    is Zp, Ip, Pp, Zq, Iq, Pq, cut-off voltage in pu. `cvr_watts` and `cvr_vars` are model 4's exponents.
    """

    name: str
    bus: str
    phases: int
    connection: str
    model: int
    kv: float
    kw: float
    kvar: float
    vmin_pu: float = 0.95
    vmax_pu: float = 1.05
    vlow_pu: float = 0.5
    zipv: tuple[float, ...] | None = None
    cvr_watts: float = 1.0
    cvr_vars: float = 2.0


@dataclass(frozen=True)
class Generator:
    """A generator of constant P and Q (model 1) or constant impedance (model 2) between vmin and vmax."""

    name: str
    bus: str
    phases: int
    connection: str
    kv: float
    kw: float
    kvar: float
    model: int = 1
    vmin_pu: float = 0.9
    vmax_pu: float = 1.1
    kva: float | None = None


@dataclass(frozen=True)
class PVSystem:
    """A photovoltaic array with its inverter.

    `power_curve` is the factor on `pmpp_kw` against the cell temperature, `efficiency_curve` the inverter's
    efficiency against DC power over `kva`; both are ((x, ...), (y, ...)), None for a constant one. `kvar` is what
    is asked of the inverter. `cut_in_percent`, `cut_out_percent` are of the `kva`.
    """

    name: str
    bus: str
    phases: int
    connection: str
    kv: float
    kva: float
    pmpp_kw: float
    irradiance: float = 1.0
    temperature_c: float = 25.0
    power_curve: Matrix | None = None
    efficiency_curve: Matrix | None = None
    kvar: float = 0.0
    kvar_max: float | None = None  # injected, None: kva
    kvar_max_abs: float | None = None  # absorbed, None: kvar_max
    pmpp_percent: float = 100.0
    cut_in_percent: float = 20.0
    cut_out_percent: float = 20.0
    watt_priority: bool = False
    model: int = 1
    vmin_pu: float = 0.9
    vmax_pu: float = 1.1


@dataclass(frozen=True)
class Storage:
    """A battery; `kw` and `kvar` are what it injects at its terminals in its present state."""

    name: str
    bus: str
    phases: int
    connection: str
    kv: float
    kva: float
    kw_rated: float
    kwh_rated: float
    kwh_stored: float
    kw: float = 0.0
    kvar: float = 0.0
    reserve_percent: float = 20.0
    charge_efficiency_percent: float = 90.0
    discharge_efficiency_percent: float = 90.0
    idling_percent: float = 1.0
    model: int = 1
    vmin_pu: float = 0.9
    vmax_pu: float = 1.1


@dataclass(frozen=True)
class Admittance:
    """Any linear element: its primitive admittance `g + j b` in siemens over the conductors of `terminals`."""

    name: str
    terminals: tuple[str, ...]
    g: Matrix
    b: Matrix


@dataclass(frozen=True)
class Feeder:
    """A distribution circuit as frozen tables; see the module's text for the vocabulary.

    Names are unique within a table and lower case where they come from OpenDSS. `origin` and `licence` say
    where the data come from. `base_mva` is the (three-phase) power base of the per-unit quantities.
    """

    name: str
    frequency_hz: float
    buses: tuple[Bus, ...]
    sources: tuple[Source, ...]
    codes: tuple[LineCode | SequenceCode | Geometry, ...] = ()
    wires: tuple[Wire, ...] = ()
    lines: tuple[Line, ...] = ()
    switches: tuple[Switch, ...] = ()
    transformers: tuple[Transformer, ...] = ()
    regulators: tuple[Regulator, ...] = ()
    capacitors: tuple[Capacitor, ...] = ()
    capacitor_controls: tuple[CapacitorControl, ...] = ()
    reactors: tuple[Reactor, ...] = ()
    loads: tuple[Load, ...] = ()
    generators: tuple[Generator, ...] = ()
    pv_systems: tuple[PVSystem, ...] = ()
    storages: tuple[Storage, ...] = ()
    admittances: tuple[Admittance, ...] = ()
    base_mva: float = 1.0
    origin: str = ""
    licence: str = ""

    @property
    def node_names(self) -> tuple[str, ...]:
        """`"bus.node"` for every node, in the order of `PowerFlow.v`."""
        return tuple(f"{bus.name}.{node}" for bus in self.buses for node in bus.nodes)

    def replace(self, **changes: object) -> Feeder:
        """A copy with some tables replaced."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
