"""Restoration on feeders: their switches, what guards and what fails, and how the task is made.

The 33-bus feeder of Baran and Wu (1989): each of its 37 branches has a switch at both of its ends that operate
together, so a branch is a switch with the published impedance, five of them open. The published data say neither
lengths nor failure rates: rates are in proportion to the impedance, 0.1 a year on the mean. The breaker of the first
branch and reclosers at the three laterals (2-19, 3-23, 6-26) guard.

The IEEE 123-node feeder has the switches of its published table: six closed, and open ones 54-94 (one phase: closing it
onto sections of three is refused), 151-300 and, to buses of other feeders, 250-251, 450-451, 300-350. Behind these
three stand supplies like the feeder's own (EMF of 1 pu; a choice), which can be left out. The breaker 150-149, the
recloser 60-160 and the three switches to other feeders guard. A section fails by its lines' lengths. Lines and switches
are rated 700 A (a choice that holds in normal operation at full load, 630 A; the 400 A of OpenDSS's copy, which do not,
are that engine's default and not published).

Numbers where nothing is published: 0.065 faults a km and year, five hours of repair (the overhead lines of the RBTS;
R. N. Allan et al., 1991) with a spread of half of it; a customer for every 2 kW; limits of 10 % on voltages (EN 50160);
prices of 10 money a kWh not served, 0.1 a kWh lost, 1 an operation, 5 a refused move. The RBTS' numbers and EN 50160's
are from memory and were not checked against them.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np

from gridjax.assembly import compile
from gridjax.control.sections import closed_everywhere, cut
from gridjax.days import KW_PER_CUSTOMER
from gridjax.env.restoration import Restoration
from gridjax.env.restoration_rules import Failures, Prices, RestorationParams
from gridjax.feeder import KM_PER_UNIT, Bus, Feeder, SequenceCode, Switch, split_terminal
from gridjax.powerflow.topology import topology

PER_KM_YEAR, PER_BRANCH_YEAR, REPAIR_HOURS, REPAIR_SPREAD = 0.065, 0.1, 5.0, 0.5
LOW_PU, HIGH_PU = 0.9, 1.1
IEEE123_RATING_A = 700.0
UNSERVED, LOSS, OPERATION, REFUSAL = 10.0, 0.1, 1.0, 5.0
GUARDS = {
    "baran_wu33": ("l1_2", "l2_19", "l3_23", "l6_26"),
    "ieee123": ("sw1", "sw4", "sw250_251", "sw450_451", "sw300_350"),
}


def baran_wu33_switched(feeder: Feeder) -> Feeder:
    """The 33-bus feeder with a switch for each branch."""
    codes = {c.name: c for c in feeder.codes if isinstance(c, SequenceCode)}
    branches = tuple(
        Switch(x.name, x.bus1, x.bus2, True, codes[x.code].r1, codes[x.code].x1, x.rating_a) for x in feeder.lines
    )
    return feeder.replace(lines=(), codes=(), switches=branches + feeder.switches)


def ieee123_switched(feeder: Feeder, *, neighbours: bool = True) -> Feeder:
    """The 123-node feeder with all switches of its published table.

    OpenDSS's copy ends two open ones at buses of their own (300_open, 94_open), and lacks those to other feeders.

    Args:
      feeder: as shipped.
      neighbours: whether the other feeders' supplies, and the switches to them, are there.
    """
    ends = {"sw7": ("151.1.2.3", "300.1.2.3"), "sw8": ("54.1", "94.1")}
    switches = [
        dataclasses.replace(s, bus1=ends[s.name][0], bus2=ends[s.name][1], closed=False) if s.name in ends else s
        for s in feeder.switches
    ]
    buses = [b for b in feeder.buses if b.name not in ("300_open", "94_open")]
    sources = list(feeder.sources)
    base_kv = feeder.buses[0].base_kv
    switches = [dataclasses.replace(s, rating_a=IEEE123_RATING_A) for s in switches]
    lines = tuple(dataclasses.replace(x, rating_a=IEEE123_RATING_A) for x in feeder.lines)
    for near, far in (("250", "251"), ("450", "451"), ("300", "350")) if neighbours else ():
        buses.append(Bus(far, base_kv, (1, 2, 3)))
        name = f"sw{near}_{far}"
        switches.append(
            dataclasses.replace(switches[0], name=name, bus1=f"{near}.1.2.3", bus2=f"{far}.1.2.3", closed=False)
        )
        sources.append(dataclasses.replace(sources[0], name=f"source{far}", bus=f"{far}.1.2.3"))
    return feeder.replace(buses=tuple(buses), lines=lines, switches=tuple(switches), sources=tuple(sources))


def switched(feeder: Feeder, **options: bool) -> Feeder:
    """A feeder with the switches that the task has on it: those above, or its own."""
    if feeder.name == "baran_wu33" and feeder.lines:
        return baran_wu33_switched(feeder, **options)
    if feeder.name == "ieee123" and any(b.name == "300_open" for b in feeder.buses):
        return ieee123_switched(feeder, **options)
    return feeder


def rates(feeder: Feeder, line_section: np.ndarray, sections: int) -> np.ndarray:
    """Faults a year of the sections, by their lines' lengths, and of switches by the impedance of those that have one.

    Raises:
      ValueError: a line has no unit of length.
    """
    out = np.zeros(sections + len(feeder.switches))
    units = {c.name: getattr(c, "unit", "none") for c in feeder.codes}
    for line, s in zip(feeder.lines, line_section, strict=True):
        unit = units[line.code] if line.unit == "none" else line.unit
        if unit == "none":
            raise ValueError(f"line.{line.name}: has no unit of length: give the rates of all locations")
        out[s] += PER_KM_YEAR * line.length * KM_PER_UNIT[unit]
    ohm = np.array([np.hypot(s.r_ohm, s.x_ohm) for s in feeder.switches])
    branch = ohm > 1e-2
    if branch.any():
        out[sections:] = np.where(branch, PER_BRANCH_YEAR * ohm / ohm[branch].mean(), 0.0)
    return out


def restoration(
    feeder: Feeder,
    multiplier: np.ndarray,
    *,
    hours: float = 0.5,
    horizon: int | None = None,
    guards: tuple[str, ...] | None = None,
    at_once: tuple[float, ...] = (0.7, 0.3),
    severity: float = 1.0,
    rate: np.ndarray | None = None,
    **options: bool,
) -> tuple[Restoration, RestorationParams]:
    """The task on a feeder, whose taps and capacitors rest where they are.

    Args:
      feeder: "baran_wu33" and "ieee123" as shipped get the switches above; others need their own.
      multiplier: (days, steps, loads) of nominal powers, over whole days; episodes begin at any step of them.
      hours: length of a step.
      horizon: steps of an episode; None is those of a day.
      guards: names of the switches that trip on faults; None takes those above, or all closed ones.
      at_once: how likely an episode begins with one, two, ... faults.
      severity: factor on the failure rates within an episode.
      rate: (sections, then switches) faults a year; None is that of `rates`.
      **options: of `ieee123_switched`.

    Returns:
      The environment and its parameters, of which all numbers may be replaced: `customers`, for one.

    Raises:
      ValueError: numbers that make no sense, normally closed switches that make a loop, join sources or leave somebody
        without supply, a section with a source that may fail or that is left by a switch which does not guard, or a
        closed switch with fewer phases than what it feeds.
    """
    multiplier = np.asarray(multiplier, float)
    if multiplier.ndim != 3 or multiplier.shape[2] != len(feeder.loads) or not multiplier.size or not hours > 0:
        raise ValueError(
            f"multiplier of shape {multiplier.shape} and steps of {hours:g} h: give (days, steps, {len(feeder.loads)}) "
            "and a positive length"
        )
    if len(at_once) < 1 or min(at_once) < 0 or abs(sum(at_once) - 1) > 1e-9:
        raise ValueError(f"at_once {at_once}: give the probabilities of one, two, ... faults, which add up to 1")
    feeder = switched(feeder, **options)
    names = [s.name for s in feeder.switches]
    grid = compile(closed_everywhere(feeder))
    sections, facts = cut(feeder, grid)
    rate = rates(feeder, facts.line_section, sections.count) if rate is None else np.asarray(rate, float)
    normal, guard = np.array([s.closed for s in feeder.switches]), _guards(feeder, guards)
    _require(feeder, sections, facts, normal, guard, rate)
    kw = np.abs([x.kw for x in feeder.loads])
    steps = multiplier.shape[1] if horizon is None else horizon
    places = [*(f"section {b[0]}" for b in facts.buses), *names]
    rows = tuple(int(r) for r in np.flatnonzero(rate > 0))
    worst = UNSERVED * hours * steps * max(1.0, multiplier.max()) * kw.sum()
    env = Restoration(
        horizon=steps, failure_penalty=-float(worst), switches=tuple(names), sections=tuple(b[0] for b in facts.buses),
        locations=tuple(places[r] for r in rows), rows=rows, nodes=feeder.node_names,
    )  # fmt: skip
    chances = rate, np.full(len(rate), REPAIR_HOURS), REPAIR_SPREAD, at_once, severity
    failures = Failures(*(jnp.asarray(a, float) for a in chances))
    return env, _params(feeder, (grid, sections, facts), multiplier, failures, (normal, guard), hours)


def _params(
    feeder: Feeder, cut_up: tuple, multiplier: np.ndarray, failures: Failures, switches: tuple[np.ndarray, np.ndarray],
    hours: float,
) -> RestorationParams:  # fmt: skip
    (grid, sections, facts), (normal, guard), ends = cut_up, switches, _ends(feeder)
    kw, nodes = np.abs([x.kw for x in feeder.loads]), len(feeder.node_names)
    return RestorationParams(
        grid=grid, sections=sections, multiplier=jnp.asarray(multiplier, float), failures=failures,
        normal=jnp.asarray(normal), guard=jnp.asarray(guard), closable=jnp.asarray(facts.covers.any(axis=1)),
        customers=jnp.asarray(np.maximum(np.round(kw / KW_PER_CUSTOMER), 1.0), float),
        weight=jnp.ones(len(feeder.loads)), load_section=jnp.asarray(facts.load_section),
        low=jnp.full(nodes, LOW_PU), high=jnp.full(nodes, HIGH_PU),
        rating_a=jnp.asarray([s.rating_a or np.inf for s in feeder.switches], float),
        base_a=grid.base_va / grid.node_volts[ends[:, 0, 0]], ends=jnp.asarray(ends),
        neighbour=jnp.asarray(_neighbours(np.asarray(sections.edge)[: len(feeder.switches)])),
        prices=Prices(*(jnp.asarray(a, float) for a in (UNSERVED, LOSS, OPERATION, REFUSAL))),
        hours=jnp.asarray(hours, float),
    )  # fmt: skip


def _guards(feeder: Feeder, guards: tuple[str, ...] | None) -> np.ndarray:
    """(switches,) which trip on faults: those named, else the module's, else all that are closed."""
    names = [s.name for s in feeder.switches]
    usual = [name for name in GUARDS.get(feeder.name, ()) if name in names]
    chosen = guards or usual or [s.name for s in feeder.switches if s.closed]
    unknown = set(chosen) - set(names)
    if unknown:
        raise ValueError(
            f"guards {sorted(unknown)} are no switches of {feeder.name!r}: choose among {', '.join(names)}"
        )
    return np.isin(names, chosen)


def _require(feeder: Feeder, sections, facts, normal: np.ndarray, guard: np.ndarray, rate: np.ndarray) -> None:
    """What the module's `restoration` says about its errors."""
    edges = np.asarray(sections.edge)
    count, switches = sections.count, len(feeder.switches)
    if rate.shape != (count + switches,) or (rate < 0).any() or not (rate > 0).any():
        raise ValueError(f"rate of shape {rate.shape}: give {count} sections' and {switches} switches', some positive")
    top = topology(sections, jnp.asarray(normal))
    live, island = np.asarray(top.live), np.asarray(top.island)
    if not live[:count][facts.load_section].all():
        dark = feeder.loads[int(np.argmin(live[facts.load_section]))]
        raise ValueError(f"load.{dark.name}: has no supply in normal operation: close a switch")
    on = int(normal.sum()) + len(feeder.sources)
    if on > len(island) - len(np.unique(island)) or len(np.unique(island[count:])) < len(feeder.sources):
        raise ValueError(
            f"feeder {feeder.name!r}: normally closed switches make a loop or join sources: open one in each"
        )
    sourced = edges[switches:, 0]
    for k, s in enumerate(feeder.switches):
        here = np.isin(edges[k], sourced)
        if here.any() and not guard[k]:
            raise ValueError(f"switch.{s.name}: leaves a section with a source: name it among the guards")
        if not facts.covers[k].all() and facts.covers[k].any():
            raise ValueError(f"switch.{s.name}: has fewer phases than one of its sections: move it, or give it all")
        if normal[k] and not facts.covers[k].any():
            raise ValueError(f"switch.{s.name}: has fewer phases than both of its sections: open it")
    if (rate[sourced] > 0).any():
        raise ValueError("a section with a source may not fail, for nothing would trip: put a switch beside the source")


def _ends(feeder: Feeder) -> np.ndarray:
    """(switches, 2, 3): nodes of both ends, repeated where there are fewer."""
    number = {name: i for i, name in enumerate(feeder.node_names)}
    out = []
    for s in feeder.switches:
        both = []
        for terminal in (s.bus1, s.bus2):
            bus, nodes = split_terminal(terminal)
            both.append(([number[f"{bus}.{n}"] for n in nodes] * 3)[:3])
        out.append(both)
    return np.array(out)


def _neighbours(edges: np.ndarray) -> np.ndarray:
    """(switches, most) the other switches at either section of each, itself where there are fewer."""
    sets = [[j for j, other in enumerate(edges) if j != k and set(other) & set(e)] for k, e in enumerate(edges)]
    most = max(1, *map(len, sets))
    return np.array([s + [k] * (most - len(s)) for k, s in enumerate(sets)])
