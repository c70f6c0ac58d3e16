"""The parts of a grid that only results need: primitive matrices on common axes, ratings, what taps and steps change.

The functions run under `gridjax.assembly.assemble`, on the primitive matrices that it has computed.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.admittance import capacitor_pairs, capacitor_step_admittance, ground_admittance
from gridjax.feeder import Capacitor, split_terminal
from gridjax.layout import KINDS, Group, Layout, Parameters, rated_volts
from gridjax.namespace import Array, namespace, set_at


@flax.struct.dataclass
class Branches:
    """Primitive admittances of one kind of element in siemens: (elements, T P, T P); `nodes` (elements, T, P).

    The ground and unused conductors have the node number one past the last.
    """

    y_re: jax.Array
    y_im: jax.Array
    nodes: jax.Array


@flax.struct.dataclass
class Taps:
    """What transformers' currents at any taps need beside their matrices.

    Attributes:
      regulator: (elements, T) whose tap a terminal's winding has, one past the last where it is fixed.
      tap: (elements, T) taps of the matrices.
      ground_re, ground_im: (elements, T, P) ties to ground within the matrices, in siemens: they know nothing of taps.
    """

    regulator: jax.Array
    tap: jax.Array
    ground_re: jax.Array
    ground_im: jax.Array


def in_series(bank: Capacitor) -> bool:
    """Whether a bank carries current to another bus, not to ground."""
    return bank.bus2 is not None and any(split_terminal(bank.bus2)[1])


def step_admittances(layout: Layout, parameters: Parameters, base: Array) -> Array:
    """Each capacitor step's admittance a phase, in per unit of its bank's rating."""
    feeder = layout.feeder
    first = np.cumsum([0] + [len(c.kvar) for c in feeder.capacitors])
    xp = namespace(parameters)
    out = xp.zeros(first[-1], xp.result_type(base, np.complex64))
    start = layout.shape.loads + layout.shape.generators
    for group, params in zip(layout.groups, parameters.elements, strict=True):
        if group.kind != "capacitors":
            continue
        y = capacitor_step_admittance(group.static, params)
        unit = np.array([np.nonzero(layout.unit_device == start + r)[0][0] for r in group.rows])
        at = first[group.rows][:, None] + np.arange(y.shape[1])
        out = set_at(out, at, y * parameters.unit_volts[unit][:, None] ** 2 / base)
    return out


def branch_nodes(layout: Layout) -> dict[str, np.ndarray]:
    """Every kind's nodes on common axes (elements, terminals, conductors)."""
    out = {}
    for kind in KINDS:
        groups = [g for g in layout.groups if g.kind == kind]
        if not groups:
            continue
        terminals, width = max(len(g.terminals) for g in groups), max(max(g.terminals) for g in groups)
        out[kind] = np.full((sum(len(g.rows) for g in groups), terminals, width), layout.shape.nodes)
        for g in groups:
            out[kind].reshape(-1, terminals * width)[g.rows[:, None], _axes(g, width)] = g.nodes
    return out


def _axes(group: Group, width: int) -> np.ndarray:
    """Where the conductors of a group's elements are among terminals of `width` conductors."""
    return np.concatenate([t * width + np.arange(n) for t, n in enumerate(group.terminals)])


def branch_matrices(
    layout: Layout, primitives: list[Array], base: Array, nodes: dict[str, np.ndarray]
) -> dict[str, Branches]:
    """Every kind's primitive matrices on the axes of their nodes; banks at 1 pu."""
    out, xp = {}, namespace(primitives, base)
    for kind, table in nodes.items():
        count, terminals, width = table.shape
        y_all = xp.zeros((count, terminals * width, terminals * width), primitives[0].dtype)
        for g, y in zip(layout.groups, primitives, strict=True):
            if g.kind == kind:
                at = _axes(g, width)
                if kind == "capacitors":
                    y = _pattern(layout, g, base)
                y_all = set_at(y_all, (g.rows[:, None, None], at[None, :, None], at[None, None, :]), y)
        out[kind] = Branches(y_re=y_all.real, y_im=y_all.imag, nodes=xp.asarray(table))
    return out


def _pattern(layout: Layout, group: Group, base: Array) -> Array:
    """The banks' matrices for 1 pu of admittance in each phase."""
    banks = [layout.feeder.capacitors[r] for r in group.rows]
    rated = np.array([rated_volts(c.kv, c.phases, c.connection) for c in banks])
    pairs = capacitor_pairs(group.static)
    return (pairs.T @ pairs)[None] * (base / rated**2)[:, None, None] + 0j


def transformer_taps(layout: Layout, parameters: Parameters, nodes: dict[str, np.ndarray]) -> Taps:
    """Those of all transformers, on the axes of their nodes."""
    count, terminals, width = nodes["transformers"].shape if "transformers" in nodes else (0, 1, 1)
    xp = namespace(parameters)
    tap = xp.ones((count, terminals), parameters.unit_volts.dtype)
    ground = xp.zeros((count, terminals * width), xp.result_type(tap, np.complex64))
    regulator = np.full((count, terminals), layout.shape.regulators)
    for k, (group, params) in enumerate(zip(layout.groups, parameters.elements, strict=True)):
        if group.kind != "transformers":
            continue
        rows = group.rows[:, None]
        tap = set_at(tap, (rows, np.arange(len(group.terminals))), params["tap"])
        ground = set_at(ground, (rows, _axes(group, width)), ground_admittance(group.static, params))
        for t in layout.taps:
            if t.group == k:
                regulator[group.rows[t.member], t.winding] = t.regulator
    ground = ground.reshape(count, terminals, width)
    return Taps(regulator=xp.asarray(regulator), tap=tap, ground_re=ground.real, ground_im=ground.imag)


def no_taps(branches: Branches, regulators: int) -> Taps:
    """Those of elements that have none."""
    tap = jnp.ones(branches.nodes.shape[:2], branches.y_re.dtype)
    ground = jnp.zeros(branches.nodes.shape, branches.y_re.dtype)
    return Taps(jnp.full(tap.shape, regulators, jnp.int32), tap, ground, ground)


def bus_phases(layout: Layout) -> Array:
    """(buses, 3): the nodes 1, 2, 3 of each bus, one past the last node where absent."""
    out = np.full((len(layout.feeder.buses), 3), layout.shape.nodes)
    i = 0
    for b, bus in enumerate(layout.feeder.buses):
        for node in bus.nodes:
            if node <= 3:
                out[b, node - 1] = i
            i += 1
    return out


def ampacities(layout: Layout) -> dict[str, Array]:
    """Rated amperes, infinite where none is given; of a transformer's windings (elements, windings)."""
    feeder = layout.feeder
    out = {
        kind: np.array([x.rating_a or np.inf for x in getattr(feeder, kind)], float) for kind in ("lines", "switches")
    }
    width = max([len(t.windings) for t in feeder.transformers], default=1)
    amps = np.full((len(feeder.transformers), width), np.inf)
    for i, t in enumerate(feeder.transformers):
        for k, w in enumerate(t.windings):
            delta = w.connection == "delta" and t.phases > 1
            phase_kv = w.kv / np.sqrt(3) if t.phases > 1 else w.kv
            amps[i, k] = w.kva / t.phases / phase_kv if not delta else w.kva / (np.sqrt(3) * w.kv)
    out["transformers"] = amps
    return out
