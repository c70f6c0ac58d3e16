"""Results of a power flow, each a pure function of (grid, point, flow): pay for what you ask for.

Currents are computed from the node voltages by the primitive admittances, `I = Y v`, and counted positive into the
element at each of its conductors; so the power into all terminals of an element together is its loss. Elements stand
in the order of the feeder's tables, under the tables' names; arrays are padded with zeros to (elements, terminals,
conductors).

Guarantees:
  In float64 and at a converged solution, what the sources deliver is what loads take plus losses to 1e-9 of it, or to
  the tolerance of `solve` if that is larger, and the currents at every node sum to zero but for the rounding of
  voltages times the stiffest admittance at the node (1e-8 pu beside a switch of 1e-7 ohm). In float32 voltages,
  `losses` and `source_power` hold, and currents through switches, whose ends' voltages are the same number, are those
  that Kirchhoff's law leaves for them; through other elements of very low impedance and through sources they are
  differences of nearly equal numbers: use float64 for these.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from gridjax.branches import no_taps
from gridjax.extremes import largest
from gridjax.grid import Grid, OperatingPoint
from gridjax.namespace import einsum, matmul
from gridjax.powerflow.element_currents import Elements, element_currents
from gridjax.powerflow.injections import factors
from gridjax.powerflow.solve import PowerFlow

SERIES = ("lines", "switches")
PASSIVE = ("lines", "switches", "transformers", "capacitors", "reactors", "admittances")


def voltages(grid: Grid, flow: PowerFlow) -> jax.Array:
    """Complex volts to ground, (nodes,), in the order of `feeder.node_names`."""
    return flow.v * grid.node_volts[:-1]


def _padded(flow: PowerFlow) -> jax.Array:
    """Node voltages in pu with the ground at the end."""
    return jnp.append(flow.v, jnp.zeros(1, flow.v.dtype))


def _bank_admittance(grid: Grid, point: OperatingPoint) -> jax.Array:
    """Each bank's admittance a phase in per unit of its rating."""
    step = jax.lax.complex(grid.step_re, grid.step_im) * point.capacitor
    banks = grid.branches["capacitors"].nodes.shape[0]
    return jnp.zeros(banks, step.dtype).at[grid.step_bank].add(step)


def currents(grid: Grid, point: OperatingPoint, flow: PowerFlow) -> dict[str, jax.Array]:
    """Complex amperes into each element, (elements, terminals, conductors) by table name."""
    amps = {kind: _currents(grid, point, flow, kind) for kind in grid.branches}
    if flow.v.dtype == jnp.complex64 and "switches" in amps:
        amps["switches"] += _missing(grid, point, flow, amps)
    return amps


def _missing(grid: Grid, point: OperatingPoint, flow: PowerFlow, amps: dict[str, jax.Array]) -> jax.Array:
    """What the switches' currents lack for the currents at their ends to sum to zero, (switches, 2, conductors)."""
    meeting = grid.junctions
    if meeting is None:
        raise ValueError(
            "the grid was made in float64 and cast: in float32 the currents through switches need tables that "
            "compile(feeder, dtype=jnp.float32), or assemble with parameters in float32, makes"
        )
    _, drawn = _unit_currents_pu(grid, point, flow, (meeting.unit[..., 0], meeting.unit[..., 1]))
    total = jnp.sum(drawn * meeting.amps, axis=-1)
    for kind, index in meeting.element.items():
        there = amps[kind][index[..., 0], index[..., 1], index[..., 2]]
        total = total + jnp.sum(there * meeting.here[kind], axis=-1)
    change = einsum("scpqd,pqd->sc", meeting.correction.astype(total.dtype), total)
    return jnp.stack([change, -change], axis=1)


def _currents(grid: Grid, point: OperatingPoint, flow: PowerFlow, kind: str) -> jax.Array:
    branches = grid.branches[kind]
    if kind == "sources":
        at = (_padded(flow)[branches.nodes] - _emf(grid, point)[:, None, :]) * grid.node_volts[branches.nodes]
        y = jax.lax.complex(branches.y_re, branches.y_im)
        return einsum("eij,ej->ei", y, at.reshape(at.shape[0], -1)).reshape(at.shape)
    amps = element_currents(kind in SERIES, False)(_elements(grid, kind), flow.v, point.tap)
    return amps * _bank_admittance(grid, point)[:, None, None] if kind == "capacitors" else amps


def _elements(grid: Grid, kind: str) -> Elements:
    branches = grid.branches[kind]
    taps = grid.taps if kind == "transformers" else no_taps(branches, grid.tap_reference.shape[0])
    return Elements(branches, grid.node_volts, taps)


def _emf(grid: Grid, point: OperatingPoint) -> jax.Array:
    """EMF of all sources at their conductors in pu, (sources, conductors)."""
    return jax.lax.complex(grid.emf_re, grid.emf_im) * point.source_pu[:, None]


def powers(grid: Grid, point: OperatingPoint, flow: PowerFlow) -> dict[str, jax.Array]:
    """Complex kVA into each element, (elements, terminals, conductors) by table name."""
    v = _padded(flow) * grid.node_volts
    return {kind: v[grid.branches[kind].nodes] * jnp.conj(i) / 1e3 for kind, i in currents(grid, point, flow).items()}


def element_losses(grid: Grid, point: OperatingPoint, flow: PowerFlow) -> dict[str, jax.Array]:
    """Complex kVA lost in each passive element, (elements,) by table name; capacitors produce reactive power."""
    return {kind: jnp.sum(s, axis=(1, 2)) for kind, s in powers(grid, point, flow).items() if kind in PASSIVE}


def losses(grid: Grid, point: OperatingPoint, flow: PowerFlow) -> jax.Array:
    """Complex kVA lost in all passive elements together, capacitors' reactive power included; scalar.

    What sources and generators deliver less what loads take: the sum of `element_losses` at a fraction of its cost,
    and exact in float32 too.
    """
    taken = jax.lax.complex(flow.taken[0], flow.taken[1]) * (grid.base_va / 1e3)
    return jnp.sum(source_power(grid, point, flow)) - taken


def source_power(grid: Grid, point: OperatingPoint, flow: PowerFlow) -> jax.Array:
    """Complex kVA that each source delivers at its terminals, (sources,).

    The first source's current is what the circuit takes, not the drop over its own impedance, which may be tiny.
    """
    first = _first_source_power(grid, point, flow)
    if grid.shape.sources == 1:
        return first[None]
    nodes = grid.branches["sources"].nodes[:, 0]
    volts = _padded(flow)[nodes] * grid.node_volts[nodes]
    others = -volts * jnp.conj(_currents(grid, point, flow, "sources")[:, 0]) / 1e3
    return jnp.sum(others, axis=1).at[0].set(first)


def _first_source_power(grid: Grid, point: OperatingPoint, flow: PowerFlow) -> jax.Array:
    """That of its EMF less what its own impedance takes: so its derivatives need none by nodes' voltages."""
    zs, sources = grid.zones, grid.branches["sources"]
    h, n = zs.head_form.shape[0], sources.nodes.shape[2]
    k = min(h, n)
    current = jax.lax.complex(flow.source[:h], flow.source[h:])
    emf = grid.source_emf * point.source_pu[0]
    inside = jnp.sum(jax.lax.complex(emf[:h], emf[h:]) * jnp.conj(current)) * (grid.base_va / 1e3)
    y = jax.lax.complex(sources.y_re[0], sources.y_im[0])[:k, :k]
    impedance = jnp.linalg.inv(y + jnp.diag((jnp.diagonal(y) == 0).astype(y.dtype)))  # where conductors only pad: any
    amps = matmul(zs.head_form.T, current)[:k] * (grid.base_va / grid.node_volts[sources.nodes[0, 0, :k]])
    return inside - jnp.sum(matmul(impedance, amps) * jnp.conj(amps)) / 1e3


def _unit_currents_pu(grid: Grid, point: OperatingPoint, flow: PowerFlow, at: Any = ...) -> tuple[jax.Array, jax.Array]:
    """Voltage and drawn current of units in pu of their rating, those `at` (zones, slots); capacitors draw nothing."""
    s, every = grid.shape, grid.units
    units = dataclasses.replace(
        every,
        laws=jax.tree.map(lambda a: a[at], every.laws),
        **{name: getattr(every, name)[at] for name in ("device", "share", "volts", "nodes")},
    )
    volts = _padded(flow) * grid.node_volts
    u = (volts[units.nodes[..., 0]] - volts[units.nodes[..., 1]]) / units.volts
    kva = grid.base_va / 1e3
    p = jnp.concatenate([point.load_kw, -point.generation_kw, jnp.zeros(1, point.load_kw.dtype)]) / kva
    q = jnp.concatenate([point.load_kvar, -point.generation_kvar, jnp.zeros(1, point.load_kw.dtype)]) / kva
    device = jnp.minimum(units.device, s.devices)
    fp, fq = factors(units.laws, u.real**2 + u.imag**2, s.exponents, s.cutoffs)
    y = jax.lax.complex(p[device] * units.share * fp, -q[device] * units.share * fq)
    return u, y * u


def device_powers(grid: Grid, point: OperatingPoint, flow: PowerFlow) -> tuple[jax.Array, jax.Array]:
    """What devices really take and give at the solved voltages.

    Returns:
      Complex kVA that each load consumes (loads,), and that each generator produces (generators,).
    """
    s = grid.shape
    u, i = _unit_currents_pu(grid, point, flow)
    count = s.devices
    s_unit = jnp.where(grid.units.share == 0, 0.0, u * jnp.conj(i))
    total = jnp.zeros(count + 1, s_unit.dtype).at[jnp.minimum(grid.units.device, count)].add(s_unit)
    total = total * grid.base_va / 1e3
    return total[: s.loads], -total[s.loads : count]


def unit_powers(grid: Grid, point: OperatingPoint, flow: PowerFlow, zone: jax.Array, slot: jax.Array) -> jax.Array:
    """Complex kVA that the units (phases of devices) in some zones' slots draw, of the shape of `zone` and `slot`."""
    u, i = _unit_currents_pu(grid, point, flow, (zone, slot))
    return u * jnp.conj(i) * (grid.base_va / 1e3)


def current_residual(grid: Grid, point: OperatingPoint, flow: PowerFlow) -> jax.Array:
    """Sum of all currents out of each node, complex per unit of base power over base voltage, (nodes,)."""
    total = jnp.zeros(grid.shape.nodes + 1, flow.v.dtype)
    for kind, i in currents(grid, point, flow).items():
        nodes = grid.branches[kind].nodes
        total = total.at[nodes].add(i * grid.node_volts[nodes] / grid.base_va)
    _, drawn = _unit_currents_pu(grid, point, flow)
    for side, sign in ((0, 1.0), (1, -1.0)):
        nodes = grid.units.nodes[..., side]
        ratio = grid.node_volts[nodes] / grid.units.volts
        total = total.at[nodes].add(sign * drawn * ratio)
    return total[:-1]


def loading(grid: Grid, point: OperatingPoint, flow: PowerFlow) -> dict[str, jax.Array]:
    """Largest conductor current over rating: lines and switches (elements,), transformers (elements, windings).

    1.0 is full load; 0.0 where the feeder gives no rating.
    """
    out = {}
    for kind, rating in grid.rating_a.items():
        if kind not in grid.branches:
            continue
        if kind == "switches" and flow.v.dtype == jnp.complex64:
            amps = largest(jnp.abs(currents(grid, point, flow)[kind]), axis=2)
        else:
            amps = element_currents(kind in SERIES, True)(_elements(grid, kind), flow.v, point.tap)
        out[kind] = (amps if kind == "transformers" else largest(amps, axis=1)) / rating
    return out


def sequence_voltages(grid: Grid, flow: PowerFlow) -> jax.Array:
    """Zero-, positive- and negative-sequence voltage of each bus in pu, (buses, 3).

    Zeros where a bus lacks one of the nodes 1, 2, 3. (C. L. Fortescue, 1918.)
    """
    present = jnp.all(grid.bus_phases < grid.shape.nodes, axis=1)
    v = _padded(flow)[grid.bus_phases]
    a = jnp.exp(2j * jnp.pi / 3).astype(v.dtype)
    transform = jnp.stack([jnp.stack([a**0, a**0, a**0]), jnp.stack([a**0, a, a**2]), jnp.stack([a**0, a**2, a])])
    return jnp.where(present[:, None], matmul(v, transform.T) / 3, 0.0)


def unbalance(grid: Grid, flow: PowerFlow) -> jax.Array:
    """Negative- over positive-sequence voltage of each bus, (buses,); 0 where a bus lacks a phase."""
    sequence = jnp.abs(sequence_voltages(grid, flow))
    positive = jnp.where(sequence[:, 1] > 0, sequence[:, 1], 1.0)
    return sequence[:, 2] / positive
