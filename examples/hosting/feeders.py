"""Feeders made ready for `hosting_capacity.py`: limits, ratings, PV systems, minimum load, settled taps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gridjax
from gridjax import scenarios
from gridjax.feeder import Feeder, Generator, split_terminal


class Study(NamedTuple):
    """What is asked of a feeder: minimum load, limits, and how far the PV power is raised."""

    load_level: float  # of every load's nominal kW and kvar, while the sun shines
    limit_pu: float
    unbalance_limit: float
    rating_a: dict[str, float]  # by line code
    most_percent: float  # PV power that the bisection begins from, in percent of the nominal load
    steps: int  # the capacity is known to most_percent / 2^steps


STUDIES = {
    "ieee123": Study(
        load_level=0.3,
        limit_pu=1.05,
        unbalance_limit=0.03,
        rating_a=dict.fromkeys("12345678", 530.0) | dict.fromkeys(("9", "10", "11"), 230.0) | {"12": 175.0},
        most_percent=100.0,
        steps=10,
    ),
    "european_lv": Study(
        load_level=0.3,
        limit_pu=1.10,
        unbalance_limit=0.02,
        rating_a={
            "4c_.35": 406.0, "4c_185": 313.0, "4c_.1": 213.0, "4c_95_sac_xc": 215.0, "4c_70": 179.0,
            "4c_.06": 159.0, "35_sac_xsc": 123.0, "2c_16": 102.0, "2c_.0225": 79.0, "2c_.007": 47.0,
        },
        most_percent=400.0,
        steps=11,
    ),
}  # fmt: skip
# Of elements as close as this to the worst one, the first in the table counts: lines in series carry one current.
TIE = 1e-6
KINDS = ("over-voltage", "line current", "transformer current", "unbalance")


def equipped(feeder: Feeder, study: Study) -> Feeder:
    """The feeder with the study's ratings and, beside each load, a generator of 0 kW with the load's connection.

    A placement is then only `generation_kw` of an operating point: nothing is compiled again. The generators keep
    their power at any voltage near the limits (`vmin_pu`, `vmax_pu` far away).
    """
    if feeder.pv_systems or feeder.storages:
        raise ValueError(f"{feeder.name} has PV systems or storages already: take them out before adding PV")
    missing = {line.code for line in feeder.lines} - set(study.rating_a)
    if missing:
        raise ValueError(f"line codes {sorted(missing)} have no rating: add them to the study's rating_a")
    pv = tuple(
        Generator(f"pv_{x.name}", x.bus, x.phases, x.connection, x.kv, 0.0, 0.0, vmin_pu=0.5, vmax_pu=1.5)
        for x in feeder.loads
    )
    lines = tuple(dataclasses.replace(x, rating_a=study.rating_a[x.code]) for x in feeder.lines)
    switches = tuple(dataclasses.replace(x, rating_a=None) for x in feeder.switches)
    return feeder.replace(lines=lines, switches=switches, generators=(*feeder.generators, *pv))


@jax.jit
def _metered(grid: gridjax.Grid, point: gridjax.OperatingPoint):
    """Whether the point is solved, the nodes' volts, and the amperes into the transformers."""
    flow = gridjax.solve(grid, point)
    return flow.converged, gridjax.voltages(grid, flow), gridjax.currents(grid, point, flow)["transformers"]


def settle_regulators(feeder: Feeder, grid: gridjax.Grid, point: gridjax.OperatingPoint) -> gridjax.OperatingPoint:
    """The point with each regulator's tap stepped until its voltage is within its band.

    Raises:
      ValueError: a regulator finds no tap within its range, or a solve on the way does not converge.
    """
    if not feeder.regulators:
        return point
    first = np.cumsum([0] + [len(bus.nodes) for bus in feeder.buses])
    node = {f"{b.name}.{n}": int(first[i]) + k for i, b in enumerate(feeder.buses) for k, n in enumerate(b.nodes)}
    rows = {t.name: i for i, t in enumerate(feeder.transformers)}
    for _ in range(100):
        converged, volts, amps = map(np.asarray, _metered(grid, point))
        if not converged:
            raise ValueError("the power flow at minimum load does not converge: choose another load level")
        tap = np.array(point.tap)
        for r, control in enumerate(feeder.regulators):
            winding = feeder.transformers[rows[control.transformer]].windings[control.winding - 1]
            bus, nodes = split_terminal(winding.bus)
            k = control.pt_phase - 1
            current = amps[rows[control.transformer], control.winding - 1, k]
            seen = volts[node[f"{bus}.{nodes[k]}"]] / control.pt_ratio
            seen = abs(seen + (control.r + 1j * control.x) * current / control.ct_primary_a)
            if abs(seen - control.vreg) > control.band / 2:
                tap[r] += np.sign(control.vreg - seen) * (winding.max_tap - winding.min_tap) / winding.num_taps
            if not winding.min_tap - 1e-9 <= tap[r] <= winding.max_tap + 1e-9:
                raise ValueError(f"regulator {control.name!r} runs out of taps at {seen:.1f} V: change its vreg")
        if np.array_equal(tap, point.tap):
            return point
        point = dataclasses.replace(point, tap=jnp.asarray(tap))
    raise ValueError("the regulators have not settled in 100 steps: widen their bands")


def minimum_load(feeder: Feeder, grid: gridjax.Grid, study: Study) -> gridjax.OperatingPoint:
    """All loads at the study's level, no PV, regulators settled."""
    point = scenarios.with_loads(grid.nominal, jnp.asarray(study.load_level))
    return settle_regulators(feeder, grid, point)


def judged_nodes(feeder: Feeder) -> np.ndarray:
    """Nodes with a voltage limit, (nodes,): phases, but for delta secondaries, whose voltage to ground floats."""
    floating = {
        split_terminal(w.bus)[0] for t in feeder.transformers for w in t.windings[1:] if w.connection == "delta"
    }
    return np.array([n <= 3 and b.name not in floating for b in feeder.buses for n in b.nodes])


class Case(NamedTuple):
    """A feeder ready to be studied."""

    study: Study
    feeder: Feeder
    grid: gridjax.Grid
    point: gridjax.OperatingPoint
    nominal_kw: np.ndarray
    judge: Callable[[gridjax.OperatingPoint, np.ndarray], Any]  # PV kW (batch, loads) to verdicts


class Capacity(NamedTuple):
    """What the bisection found for each placement, (placements,): PV kW, and what ended it at `violated_kw`."""

    hosted_kw: np.ndarray
    violated_kw: np.ndarray
    kind: np.ndarray  # of KINDS, -1 unless limited
    element: np.ndarray
    limited: np.ndarray
    beyond: np.ndarray
    undetermined: np.ndarray
    unsolved: np.ndarray  # power flows of this placement that did not converge
    source_kw: np.ndarray  # at hosted_kw
