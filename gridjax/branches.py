"""The parts of a grid that only results need: primitive matrices on common axes, ratings, what taps and steps change.

The functions run under `gridjax.assembly.assemble`, on the primitive matrices that it has computed.
"""

from __future__ import annotations

import flax.struct
import jax
import numpy as np

from gridjax.admittance import capacitor_pairs, capacitor_step_admittance
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


def branch_matrices(layout: Layout, primitives: list[Array], base: Array) -> dict[str, Branches]:
    """Every kind's primitive matrices on common axes (elements, terminals, conductors); banks at 1 pu."""
    out, xp = {}, namespace(primitives, base)
    for kind in KINDS:
        groups = [(g, y) for g, y in zip(layout.groups, primitives, strict=True) if g.kind == kind]
        if not groups:
            continue
        count = sum(len(g.rows) for g, _ in groups)
        terminals = max(len(g.terminals) for g, _ in groups)
        width = max(max(g.terminals) for g, _ in groups)
        y_all = xp.zeros((count, terminals * width, terminals * width), groups[0][1].dtype)
        nodes = np.full((count, terminals * width), layout.shape.nodes)
        for g, y in groups:
            at = np.concatenate([t * width + np.arange(k) for t, k in enumerate(g.terminals)])
            if kind == "capacitors":
                y = _pattern(layout, g, base)
            y_all = set_at(y_all, (g.rows[:, None, None], at[None, :, None], at[None, None, :]), y)
            nodes[g.rows[:, None], at[None, :]] = g.nodes
        nodes = nodes.reshape(count, terminals, width)
        out[kind] = Branches(y_re=y_all.real, y_im=y_all.imag, nodes=xp.asarray(nodes))
    return out


def _pattern(layout: Layout, group: Group, base: Array) -> Array:
    """The banks' matrices for 1 pu of admittance in each phase."""
    banks = [layout.feeder.capacitors[r] for r in group.rows]
    rated = np.array([rated_volts(c.kv, c.phases, c.connection) for c in banks])
    pairs = capacitor_pairs(group.static)
    return (pairs.T @ pairs)[None] * (base / rated**2)[:, None, None] + 0j


def tapped_transformers(layout: Layout, parameters: Parameters):
    """Parameters of the transformers that have regulators, to recompute their matrices at other taps."""
    static, params = [], []
    members: dict[int, list[int]] = {}
    for t in layout.taps:
        known = members.setdefault(t.group, [])
        known.extend(m for m in dict.fromkeys(t.member.tolist()) if m not in known)
    for g, rows in members.items():
        group = layout.groups[g]
        which = np.array(rows)
        tap_of = np.full((len(rows), len(group.terminals)), layout.shape.regulators)
        for t in layout.taps:
            if t.group == g:
                tap_of[[rows.index(m) for m in t.member], t.winding] = t.regulator
        params.append(
            {k: v[which] for k, v in parameters.elements[g].items()} | {"regulator": tap_of, "row": group.rows[which]}
        )
        static.append((group.static, group.terminals))
    return tuple(static), tuple(params)


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
