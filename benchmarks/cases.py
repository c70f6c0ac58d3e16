"""What the benchmark runs on: feeders by name, their scenarios, and circuits that every peer can express.

Scenario i of a case multiplies load l's kW and kvar by `factors(seed, ...)[i, l]`, uniform between 0.5 and 1.5, from
NumPy's PCG64: the same for every tool, and scenario i is the same in every batch.

power-grid-model has three phases at every node, constant-power wye loads (or constant current, or impedance), and no
regulators or single-phase transformers. `equivalent` makes of a feeder the nearest circuit that it can express, and
both tools solve that one:

- three-phase delta - grounded-wye transformers stay, without magnetising branch and antifloat shunts;
- wye - wye transformers of equal voltages (regulators) become lines of their short-circuit impedance, taps at neutral,
  those between the same buses one line;
- other transformers go with what hangs behind them, if that has no load; otherwise the feeder is refused;
- switches become lines of 1 milliohm (closed) or go (open);
- loads become constant-power wye loads; a load between two phases becomes two halves to ground;
- capacitors and generators go; the source has its positive-sequence impedance in all sequences.

Lines keep their full matrices. A missing phase is a conductor of its own in power-grid-model, tied to no other and
without load, so that it does not change the phases there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

import gridjax
from gridjax.feeder import (
    Feeder,
    Line,
    LineCode,
    Load,
    SequenceCode,
    Transformer,
    join_terminal,
    split_terminal,
)


@dataclass(frozen=True)
class Case:
    """A feeder of the benchmark, and which peers solve it."""

    name: str
    make: Callable[[], Feeder]
    opendss: bool = True
    power_grid_model: bool = False
    balanced: bool = False  # pandapower and lightsim2grid


def cases(seed: int) -> dict[str, Case]:
    """All cases by name."""
    shipped = ("ieee13", "ieee34", "ieee123", "european_lv", "ieee8500")
    out = [Case(name, lambda n=name: gridjax.feeders.load(n)) for name in shipped]
    sizes = (1000, 10_000, 100_000)
    out += [Case(f"synthetic_{n}", lambda n=n: gridjax.feeders.synthetic(n, seed)) for n in sizes]
    twins = {
        "ieee123_equivalent": lambda: gridjax.feeders.ieee123(),
        "european_lv_equivalent": lambda: gridjax.feeders.european_lv(),
        "synthetic_1000_equivalent": lambda: gridjax.feeders.synthetic(1000, seed, services=0.0),
        "synthetic_10000_equivalent": lambda: gridjax.feeders.synthetic(10_000, seed, services=0.0),
    }
    out += [Case(n, lambda m=make: equivalent(m()), power_grid_model=True) for n, make in twins.items()]
    out.append(Case("baran_wu33", gridjax.feeders.baran_wu33, balanced=True))
    return {case.name: case for case in out}


def factors(seed: int, scenarios: int, loads: int) -> np.ndarray:
    """Each scenario's factor on each load, (scenarios, loads)."""
    return np.random.Generator(np.random.PCG64(seed)).uniform(0.5, 1.5, (scenarios, loads))


def nominal(feeder: Feeder) -> tuple[np.ndarray, np.ndarray]:
    """The loads' kW and kvar, (loads,)."""
    return np.array([x.kw for x in feeder.loads]), np.array([x.kvar for x in feeder.loads])


def matrix_code(code: LineCode | SequenceCode) -> LineCode:
    """Sequence values as matrices: (2 z1 + z0)/3 on the diagonal and (z0 - z1)/3 off it."""
    if isinstance(code, LineCode):
        return code

    def full(one: float, zero: float) -> tuple[tuple[float, ...], ...]:
        if code.phases == 1:
            return ((one,),)
        own, mutual = (2 * one + zero) / 3, (zero - one) / 3
        return tuple(tuple(own if i == j else mutual for j in range(code.phases)) for i in range(code.phases))

    return LineCode(code.name, full(code.r1, code.r0), full(code.x1, code.x0), full(code.c1, code.c0), code.unit)


def equivalent(feeder: Feeder) -> Feeder:
    """The circuit in the words that power-grid-model has (see the module's text).

    Raises:
      ValueError: something that carries load cannot be said so.
    """
    codes = []
    for code in feeder.codes:
        if not isinstance(code, LineCode | SequenceCode):
            raise ValueError(f"code.{code.name}: geometries are not converted; give matrices or sequence values")
        codes.append(matrix_code(code))
    lines, kept, cut = list(feeder.lines), [], []
    banks: dict[tuple[str, str], dict[int, complex]] = {}
    for x in feeder.transformers:
        first, second = (x.windings[0], x.windings[-1])
        if len(x.windings) == 2 and x.phases == 3 and (first.connection, second.connection) == ("delta", "wye"):
            kept.append(replace(x, no_load_loss_percent=0.0, magnetizing_percent=0.0, antifloat_ppm=0.0))
        elif len(x.windings) == 2 and first.connection == second.connection == "wye" and first.kv == second.kv:
            ends, ohm = _series(x)
            banks.setdefault(ends, {}).update(ohm)
        else:
            cut.append(x)
    for (a, b), ohm in banks.items():
        phases = tuple(sorted(ohm))
        codes.append(_diagonal(f"{a}_{b}", [ohm[n] for n in phases]))
        lines.append(Line(f"{a}_{b}", join_terminal(a, phases), join_terminal(b, phases), f"{a}_{b}", 1.0, "none"))
    for s in feeder.switches:
        if s.closed:
            codes.append(_diagonal(f"{s.name}_switch", [1e-3 + 0j] * len(split_terminal(s.bus1)[1])))
            lines.append(Line(f"{s.name}_switch", s.bus1, s.bus2, f"{s.name}_switch", 1.0, "none"))
    source = feeder.sources[0]
    source = replace(source, r0_ohm=source.r1_ohm, x0_ohm=source.x1_ohm, r2_ohm=None, x2_ohm=None)
    out = Feeder(
        name=f"{feeder.name}_equivalent", frequency_hz=feeder.frequency_hz, buses=feeder.buses, sources=(source,),
        codes=tuple(codes), lines=tuple(lines), transformers=tuple(kept), loads=tuple(_loads(feeder)),
        base_mva=feeder.base_mva, origin=f"equivalent of: {feeder.origin}", licence=feeder.licence,
    )  # fmt: skip
    return _without_dead_ends(out, {split_terminal(w.bus)[0] for x in cut for w in x.windings[1:]})


def _diagonal(name: str, ohm: list[complex]) -> LineCode:
    """Conductors without coupling, ohm in total."""

    def full(values: list[float]) -> tuple[tuple[float, ...], ...]:
        return tuple(map(tuple, np.diag(values).tolist()))

    return LineCode(name, full([z.real for z in ohm]), full([z.imag for z in ohm]), full([0.0] * len(ohm)), "none")


def _series(x: Transformer) -> tuple[tuple[str, str], dict[int, complex]]:
    """The buses that a transformer of ratio 1 joins, and its short-circuit impedance by phase in ohm."""
    first, second = x.windings
    (bus1, nodes1), (bus2, nodes2) = split_terminal(first.bus), split_terminal(second.bus)
    if nodes1[: x.phases] != nodes2[: x.phases]:
        raise ValueError(f"transformer.{x.name} joins different phases: power-grid-model has no such branch")
    volts = first.kv / (math.sqrt(3) if x.phases > 1 else 1.0)
    base = volts**2 / (first.kva / x.phases) * 1e3
    z = complex(first.r_percent + second.r_percent, x.x_percent[0]) / 100 * base
    return (bus1, bus2), dict.fromkeys(nodes1[: x.phases], z)


def _loads(feeder: Feeder) -> list[Load]:
    base = {b.name: b.base_kv for b in feeder.buses}
    law = (0.5, 1.5, 0.4)  # vmin_pu, vmax_pu, vlow_pu
    out = []
    for x in feeder.loads:
        bus, nodes = split_terminal(x.bus)
        phases = [n for n in nodes if n]
        if len(phases) == 3:
            terminal = join_terminal(bus, (*phases, 0))
            out.append(Load(x.name, terminal, 3, "wye", 1, base[bus] * math.sqrt(3), x.kw, x.kvar, *law))
            continue
        for k, node in enumerate(phases):
            kw, kvar = x.kw / len(phases), x.kvar / len(phases)
            out.append(Load(f"{x.name}_{k}", join_terminal(bus, (node, 0)), 1, "wye", 1, base[bus], kw, kvar, *law))
    return out


def _without_dead_ends(feeder: Feeder, roots: set[str]) -> Feeder:
    """Takes out what lies behind transformers that cannot be said."""
    if not roots:
        return feeder
    neighbours: dict[str, set[str]] = {}
    for line in feeder.lines:
        a, b = split_terminal(line.bus1)[0], split_terminal(line.bus2)[0]
        neighbours.setdefault(a, set()).add(b)
        neighbours.setdefault(b, set()).add(a)
    gone, stack = set(roots), list(roots)
    while stack:
        new = neighbours.get(stack.pop(), set()) - gone
        gone |= new
        stack += new
    held = [f"load.{x.name}" for x in feeder.loads if split_terminal(x.bus)[0] in gone]
    if held:
        raise ValueError(f"{held[0]} hangs behind a transformer that power-grid-model cannot express: leave it out")
    return feeder.replace(
        buses=tuple(b for b in feeder.buses if b.name not in gone),
        lines=tuple(x for x in feeder.lines if split_terminal(x.bus1)[0] not in gone),
    )
