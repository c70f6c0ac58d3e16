"""Random radial feeders of any size, with the parts and proportions of North American distribution.

One 115/12.47 kV substation transformer (delta - grounded wye) feeds as many circuits as the size asks for. A circuit
has a three-phase trunk; laterals of three, two or one phase branch from it and from each other, the phases of each
taken where fewest nodes are yet. Impedances and shunt capacitances are published ones:

- overhead lines, per mile, after Kron reduction of the neutral: configurations 601 (556.5 kcmil ACSR), 300 (1/0 ACSR),
  301 (#2 ACSR) and 302 (#4 ACSR); cables: 606 (250 kcmil concentric neutral) and 607 (1/0 tape shield). All computed
  by Carson's equations (J. R. Carson, 1926) in W. H. Kersting, "Radial distribution test feeders", IEEE Power
  Engineering Society Winter Meeting, 2001. Two phases are 301 without the missing conductor's row and column, which is
  exact for an absent conductor.
- services: centre-tapped transformers and 4/0 triplex as in R. F. Arritt and R. C. Dugan, "The IEEE 8500-node test
  feeder", IEEE PES T&D, 2010.

Loads are drawn, then sized circuit by circuit so that the largest voltage drop reaches `DROP`, estimated with constant
currents at nominal voltage: the drop of phase p to a bus is the sum of `Z I` over the lines above it, with I the
current of everything below. Only integers of PCG64's raw stream (M. E. O'Neill, 2014) are drawn, which NumPy promises
to keep, so that a seed means the same feeder everywhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from gridjax.feeder import Bus, Capacitor, Feeder, Line, LineCode, Load, Regulator, Source, Transformer, Winding

KV = 12.47
VOLTS = 1e3 * KV / math.sqrt(3)
CIRCUIT_NODES = 4000  # a circuit has at most about so many
DROP = 0.055  # per unit, the largest on a circuit's lines at nominal load
AMPS = 500.0  # at a circuit's head
LARGEST_FACTOR = 4.0  # on the loads as drawn
MODELS = (1,) * 14 + (2,) * 2 + (5,) * 2 + (8,) * 2
ZIPV = (0.4, 0.3, 0.3, 0.4, 0.3, 0.3, 0.5)  # an even mix, not a measured one
SERVICE_KVA = (5.0, 10.0, 15.0, 25.0, 37.5, 50.0, 75.0, 100.0)
PHASORS = np.exp(-2j * np.pi / 3 * np.arange(3))
FREQUENCY = 60.0

# Upper triangles, row by row: ohm per mile, and microsiemens per mile.
_CONFIGURATIONS = {
    "601": (
        (0.3465 + 1.0179j, 0.1560 + 0.5017j, 0.1580 + 0.4236j, 0.3375 + 1.0478j, 0.1535 + 0.3849j, 0.3414 + 1.0348j),
        (6.2998, -1.9958, -1.2595, 5.9597, -0.7417, 5.6386),
    ),
    "300": (
        (1.3368 + 1.3343j, 0.2101 + 0.5779j, 0.2130 + 0.5015j, 1.3238 + 1.3569j, 0.2066 + 0.4591j, 1.3294 + 1.3471j),
        (5.3350, -1.5313, -0.9943, 5.0979, -0.6212, 4.8880),
    ),
    "301": (
        (1.9300 + 1.4115j, 0.2327 + 0.6442j, 0.2359 + 0.5691j, 1.9157 + 1.4281j, 0.2288 + 0.5238j, 1.9219 + 1.4209j),
        (5.1207, -1.4364, -0.9402, 4.9055, -0.5951, 4.7154),
    ),
    "302": ((2.7995 + 1.4855j,), (4.2251,)),
    "606": (
        (0.7982 + 0.4463j, 0.3192 + 0.0328j, 0.2849 - 0.0143j, 0.7891 + 0.4041j, 0.3192 + 0.0328j, 0.7982 + 0.4463j),
        (96.8897, 0.0, 0.0, 96.8897, 0.0, 96.8897),
    ),
    "607": ((1.3425 + 0.5124j,), (88.9912,)),
}
_AMPACITY = {"601": 730.0, "300": 230.0, "301": 180.0, "302": 140.0}
_PAIRS = {(1, 2): "301_12", (2, 3): "301_23", (1, 3): "301_13"}
_TRIPLEX = LineCode(
    "triplex",
    ((0.40995115, 0.11809509), (0.11809509, 0.40995115)),
    ((0.16681819, 0.1275925), (0.1275925, 0.16681819)),
    ((3.0, -2.4), (-2.4, 3.0)),
    "kft",
)


def synthetic(nodes: int, seed: int = 0, *, services: float = 0.25, regulators: bool = False) -> Feeder:
    """A random radial three-phase feeder; the same for the same arguments on every platform.

    Loads have models 1 (70 %), 2, 5 and 8 (10 % each), in wye and delta; power factors lie between 0.92 and 0.98. At
    nominal load, voltages lie between 0.9 and 1.05 pu.

    Args:
      nodes: bus-phase pairs, exactly; at least 20.
      seed: a non-negative integer.
      services: the share of single-phase customers that hang behind a centre-tapped 7.2/0.24 kV transformer and a
        triplex drop of their own (four nodes each), 0 to 1.
      regulators: whether each circuit begins with three single-phase step regulators, at taps drawn from 1.0 to 1.025.

    Returns:
      A feeder in which `gridjax.validate` finds nothing.

    Raises:
      ValueError: fewer than 20 nodes, a negative seed, or a share outside 0 to 1.
    """
    if nodes < 20 or seed < 0 or not 0 <= services <= 1:
        raise ValueError(
            f"synthetic({nodes}, {seed}, services={services}): give at least 20 nodes, a seed of at least 0 and a "
            "share of services between 0 and 1"
        )
    dice = _Dice(seed)
    count = max(1, round(nodes / CIRCUIT_NODES))
    budgets = [(nodes - 6) // count + (k < (nodes - 6) % count) for k in range(count)]
    tables = _Tables()
    for number, budget in enumerate(budgets, 1):
        tables.add(_grow(dice, f"c{number}", number, budget, services, regulators))
    kva = 5000.0 * math.ceil(1.3 * tables.kva / 5000)
    windings = (
        Winding("source.1.2.3", "delta", 115.0, kva),
        Winding("station.1.2.3.0", "wye", KV, kva, tap=1.0 if regulators else 1.025),
    )
    station = Transformer("substation", 3, windings, x_percent=(8.0,))
    return Feeder(
        name=f"synthetic_{nodes}_{seed}",
        frequency_hz=FREQUENCY,
        buses=(
            Bus("source", 115 / math.sqrt(3), (1, 2, 3), 0.0, 500.0),
            Bus("station", KV / math.sqrt(3), (1, 2, 3), 0.0, 0.0),
            *tables.buses,
        ),
        sources=(Source("grid", "source.1.2.3", 115.0, 1.02, 30.0, 0.6, 2.4, 0.9, 3.6),),
        codes=_codes(),
        lines=tuple(tables.lines),
        transformers=(station, *tables.transformers),
        regulators=tuple(tables.regulators),
        capacitors=tuple(tables.capacitors),
        loads=tuple(tables.loads),
        origin=f"gridjax.feeders.synthetic({nodes}, {seed}, services={services}, regulators={regulators})",
        licence="Apache-2.0",
    )


class _Dice:
    """Integers from PCG64's raw stream."""

    def __init__(self, seed: int):
        self._bits = np.random.PCG64(seed)
        self._pool: list[int] = []

    def below(self, n: int) -> int:
        """Uniform in 0 to n - 1."""
        if not self._pool:
            self._pool = self._bits.random_raw(4096).tolist()
        return self._pool.pop() % n

    def chance(self, percent: float) -> bool:
        """True in so many of a hundred draws."""
        return self.below(10000) < round(100 * percent)


@dataclass
class _Demand:
    """A load as drawn: `at` its bus, `service` whether it has a transformer and a drop of its own."""

    at: int
    phases: tuple[int, ...]
    connection: str
    model: int
    kw: int
    tangent: float
    service: bool = False


@dataclass
class _Circuit:
    """One circuit while it grows. Bus 0 is its head; a bus's line comes from its parent, which stands before it."""

    name: str
    tap: tuple[float, ...]  # of the regulators at its head; empty: none, and the head is the station
    parent: list[int] = field(default_factory=lambda: [-1])
    phases: list[tuple[int, ...]] = field(default_factory=lambda: [(1, 2, 3)])
    code: list[str] = field(default_factory=lambda: [""])
    metres: list[int] = field(default_factory=lambda: [0])
    place: list[tuple[float, float]] = field(default_factory=lambda: [(0.0, 0.0)])
    demands: list[_Demand] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)  # metres of each service's triplex, in the order of demands
    trunk: int = 0

    def bus(self, i: int) -> str:
        """A bus's name."""
        return f"{self.name}_{i}" if i or self.tap else "station"

    def extend(self, parent: int, phases: tuple[int, ...], code: str, metres: int, heading: tuple[int, int]) -> int:
        """Adds a bus and the line to it."""
        x, y = self.place[parent]
        self.parent.append(parent)
        self.phases.append(phases)
        self.code.append(code)
        self.metres.append(metres)
        self.place.append((x + metres * heading[0], y + metres * heading[1]))
        return len(self.parent) - 1


def _grow(dice: _Dice, name: str, number: int, budget: int, services: float, regulated: bool) -> _Circuit:
    """A circuit of exactly `budget` nodes."""
    taps = tuple(1 + 0.00625 * dice.below(5) for _ in range(3)) if regulated else ()
    circuit = _Circuit(name, taps)
    circuit.place[0] = (20.0 * number, 0.0)
    left = budget - 3 * regulated
    circuit.trunk = min(max(budget // 60, 3), 40, left // 3)
    used = [0, 0, 0]
    for _ in range(circuit.trunk):
        at = circuit.extend(len(circuit.parent) - 1, (1, 2, 3), "601", 100 + dice.below(200), (0, (-1) ** number))
        left -= 3
        if dice.chance(20):
            _demand(dice, circuit, at, False)
    while left:
        top = dice.below(circuit.trunk + 1) if dice.chance(50) else dice.below(len(circuit.parent))
        count = min(_lateral_phases(dice, len(circuit.phases[top])), left)
        free = sorted(circuit.phases[top], key=lambda p: (used[p - 1], p))
        phases = tuple(sorted(free[:count]))
        code = _lateral_code(dice, phases)
        heading = ((1, 0), (-1, 0), (0, 1), (0, -1))[dice.below(4)]
        for _ in range(min(1 + dice.below(6), left // count)):
            top = circuit.extend(top, phases, code, 40 + dice.below(120), heading)
            left -= count
            for p in phases:
                used[p - 1] += 1
            if dice.chance(60):
                service = count == 1 and dice.chance(100 * services) and left >= 4
                _demand(dice, circuit, top, service)
                left -= 4 * service
            if left < count:
                break
    return circuit


def _lateral_phases(dice: _Dice, available: int) -> int:
    roll = dice.below(100)
    if available == 3:
        return 3 if roll < 30 else 2 if roll < 45 else 1
    return 2 if available == 2 and roll < 40 else 1


def _lateral_code(dice: _Dice, phases: tuple[int, ...]) -> str:
    if len(phases) == 3:
        return ("300", "300", "301", "301", "606")[dice.below(5)]
    if len(phases) == 2:
        return _PAIRS[phases]  # type: ignore[index]
    return ("302", "302", "302", "302", "607")[dice.below(5)]


def _demand(dice: _Dice, circuit: _Circuit, at: int, service: bool) -> None:
    """Draws the customer at a bus."""
    phases = circuit.phases[at]
    delta = len(phases) > 1 and dice.chance(40)
    if len(phases) == 2 and not delta:
        phases = (phases[dice.below(2)],)
    kw = (2 + dice.below(19)) * len(phases)
    tangent = (0.2, 0.25, 0.33, 0.4)[dice.below(4)]
    model = MODELS[dice.below(len(MODELS))]
    circuit.demands.append(_Demand(at, phases, "delta" if delta else "wye", model, kw, tangent, service))
    circuit.drops.append(10 + dice.below(30) if service else 0)


def _matrices(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A configuration's Z in ohm per mile and B in microsiemens per mile, as full matrices."""
    upper_z, upper_b = _CONFIGURATIONS[name]
    n = 3 if len(upper_z) == 6 else 1
    z, b = np.zeros((n, n), complex), np.zeros((n, n))
    rows, columns = np.triu_indices(n)
    z[rows, columns], b[rows, columns] = upper_z, upper_b
    z[columns, rows], b[columns, rows] = upper_z, upper_b
    return z, b


def _codes() -> tuple[LineCode, ...]:
    out = []
    for name in _CONFIGURATIONS:
        found = [(name, _matrices(name))]
        if name == "301":
            for pair, other in _PAIRS.items():
                at = np.ix_([p - 1 for p in pair], [p - 1 for p in pair])
                found.append((other, (found[0][1][0][at], found[0][1][1][at])))
        for code, (z, b) in found:
            c = np.round(1e3 * b / (2 * math.pi * FREQUENCY), 6)
            r, x, c = (tuple(map(tuple, a.tolist())) for a in (np.real(z), np.imag(z), c))
            out.append(LineCode(code, r, x, c, "mi"))
    return (*out, _TRIPLEX)


def _phase_amps(demand: _Demand) -> np.ndarray:
    """Complex amperes a phase at nominal voltage, (3,)."""
    s = 1e3 * demand.kw * complex(1, demand.tangent)
    amps = np.zeros(3, complex)
    at = [p - 1 for p in demand.phases]
    if demand.connection == "delta" and len(at) == 2:
        across = (PHASORS[at[0]] - PHASORS[at[1]]) * VOLTS
        amps[at] = np.conj(s / across) * np.array([1, -1])
    else:
        amps[at] = np.conj(s / len(at) / (PHASORS[at] * VOLTS))
    return amps


def _factor(circuit: _Circuit) -> float:
    """By how much the loads as drawn are to be multiplied (see the module's text), in hundredths."""
    z = {}
    for code in _codes()[:-1]:
        z[code.name] = (np.array(code.r) + 1j * np.array(code.x)) / 1609.344
    amps = np.zeros((len(circuit.parent), 3), complex)
    for demand in circuit.demands:
        amps[demand.at] += _phase_amps(demand)
    for i in range(len(amps) - 1, 0, -1):
        amps[circuit.parent[i]] += amps[i]
    drop, worst = np.zeros_like(amps), 0.0
    for i in range(1, len(amps)):
        at = [p - 1 for p in circuit.phases[i]]
        drop[i] = drop[circuit.parent[i]]
        drop[i, at] += z[circuit.code[i]] @ amps[i, at] * circuit.metres[i]
        worst = max(worst, float(np.max((drop[i] * np.conj(PHASORS))[at].real)))
    limits = (DROP * VOLTS / max(worst, 1e-9), AMPS / max(float(np.abs(amps[0]).max()), 1e-9), LARGEST_FACTOR)
    return max(math.floor(100 * min(limits) + 1e-6), 1) / 100


class _Tables:
    """The feeder's tables, circuit after circuit; `kva` is the load so far."""

    def __init__(self):
        self.buses: list[Bus] = []
        self.lines: list[Line] = []
        self.transformers: list[Transformer] = []
        self.regulators: list[Regulator] = []
        self.capacitors: list[Capacitor] = []
        self.loads: list[Load] = []
        self.kva = 0.0

    def add(self, circuit: _Circuit) -> None:
        """Sizes a circuit and writes it down."""
        if circuit.tap:
            self._regulate(circuit)
        for i in range(0 if circuit.tap else 1, len(circuit.parent)):
            self.buses.append(Bus(circuit.bus(i), KV / math.sqrt(3), circuit.phases[i], *circuit.place[i]))
        for i in range(1, len(circuit.parent)):
            nodes = ".".join(map(str, circuit.phases[i]))
            near, far = (f"{circuit.bus(j)}.{nodes}" for j in (circuit.parent[i], i))
            code, km = circuit.code[i], circuit.metres[i] / 1e3
            self.lines.append(Line(f"{circuit.name}_{i}", near, far, code, km, "km", _AMPACITY.get(code[:3])))
        factor = _factor(circuit)
        kw = kvar = 0.0
        for number, (demand, metres) in enumerate(zip(circuit.demands, circuit.drops, strict=True), 1):
            load = self._load(circuit, demand, f"{circuit.name}_{number}", factor, metres)
            self.loads.append(load)
            kw, kvar = kw + load.kw, kvar + load.kvar
        self.kva += math.hypot(kw, kvar)
        bank = 150.0 * int(0.4 * kvar / 150)
        if bank:
            bus = circuit.bus(2 * circuit.trunk // 3)
            name = f"{circuit.name}_bank"
            self.capacitors.append(
                Capacitor(name, f"{bus}.1.2.3", 3, "wye", KV, (bank,), (True,), bus2=f"{bus}.0.0.0"),
            )

    def _regulate(self, circuit: _Circuit) -> None:
        volts = round(KV / math.sqrt(3), 4)
        for phase, tap in enumerate(circuit.tap, 1):
            name = f"{circuit.name}_regulator{phase}"
            windings = (
                Winding(f"station.{phase}.0", "wye", volts, 5000.0, 0.005),
                Winding(f"{circuit.bus(0)}.{phase}.0", "wye", volts, 5000.0, 0.005, tap),
            )
            self.transformers.append(Transformer(name, 1, windings, (0.1,), bank=f"{circuit.name}_regulator"))
            self.regulators.append(Regulator(name, name, 2, ct_primary_a=500.0))

    def _load(self, circuit: _Circuit, demand: _Demand, name: str, factor: float, metres: int) -> Load:
        kw = round(demand.kw * factor, 2)
        kvar = round(kw * demand.tangent, 3)
        nodes = ".".join(map(str, demand.phases))
        bus = f"{circuit.bus(demand.at)}.{nodes}"
        phases = 1 if len(demand.phases) < 3 else 3
        kv = KV if phases == 3 or demand.connection == "delta" else round(KV / math.sqrt(3), 4)
        terminal = bus if demand.connection == "delta" else f"{bus}.0"
        if demand.service:
            terminal, kv = self._serve(circuit, demand, name, math.hypot(kw, kvar), metres), 0.24
        zipv = ZIPV if demand.model == 8 else None
        law = (demand.connection, demand.model, kv, kw, kvar, 0.7, 1.2, 0.5, zipv)
        return Load(name, terminal, phases, *law)

    def _serve(self, circuit: _Circuit, demand: _Demand, name: str, kva: float, metres: int) -> str:
        """A transformer and a drop for one customer; returns the customer's terminal."""
        size = next((s for s in SERVICE_KVA if s >= kva), SERVICE_KVA[-1])
        x, y = circuit.place[demand.at]
        near, far = f"{name}_low", f"{name}_meter"
        self.buses += [Bus(near, 0.12, (1, 2), x + 5, y + 5), Bus(far, 0.12, (1, 2), x + 5, y + 5 + metres)]
        windings = (
            Winding(f"{circuit.bus(demand.at)}.{demand.phases[0]}.0", "wye", 7.2, size, 0.6),
            Winding(f"{near}.1.0", "wye", 0.12, size, 1.2),
            Winding(f"{near}.0.2", "wye", 0.12, size, 1.2),
        )
        self.transformers.append(
            Transformer(f"{name}_service", 1, windings, (2.04, 2.04, 1.36), 0.2, 0.5),
        )
        parallel = max(1, math.ceil(kva / 20))  # drops of 4/0 triplex, for a few volts at most
        self.lines.append(Line(f"{name}_drop", f"{near}.1.2", f"{far}.1.2", "triplex", metres / 1e3 / parallel))
        return f"{far}.1.2"
