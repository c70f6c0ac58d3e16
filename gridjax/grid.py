r"""Compiling a feeder: from impedances to the linear operators of its zones.

Everything linear is eliminated once. In a zone, interior nodes i and head nodes h obey, in per unit,

    Y_ii v_i + Y_ih v_h = F_i x,        I_h = Y_hi v_i + Y_hh v_h - F_h x,

where x are the inputs of its slots: currents of units, compensation of taps, currents of the zones that hang
below. The slots' outputs are `y = G_i v_i + G_h v_h + D x`. Kron reduction (G. Kron, 1939) gives

    v_i = N x + N_h v_h     N = Y_ii^-1 F_i,          N_h = -Y_ii^-1 Y_ih
    y   = Z x + W v_h       Z = G_i N + D,            W = G_i N_h + G_h
    I_h = Y_in v_h - T x    T = F_h - Y_hi N,         Y_in = Y_hh + Y_hi N_h.

A zone's `Y_in` is added to its parent's matrix, so that between zones only the Norton currents `T x` and the head
voltages remain: one sweep over the tree solves the whole linear circuit exactly, whatever it contains.

Taps. A winding at tap t sees `w = v/t` of its terminal voltage v and sends `i_r = t i` for the terminal current i.
The operators hold the tap at its reference t0; what differs is compensated by a series voltage and a current
behind the ideal ratio,

    e = (t - t0) w,    j = (t - t0) i,    w = (v - e)/t0,    i = ((Y1 w)_r - j)/t0,

with Y1 the transformer's winding admittance. Both inputs hardly disturb their own outputs (w is set upstream, i
downstream), so a few substitutions suffice, no matrix depends on a tap, and regulators may stand anywhere: in
loops, in open delta, ganged, on any winding.

Head coordinates: the voltages of a head's nodes are taken as differences from its last node, `v_k - v_last`, and that
node's own; the currents accordingly as those of the other nodes, and the sum of all. In ungrounded circuits the sum is
tiny and meets an enormous impedance, so it must not be the difference of rounded numbers.

Real coordinates: every complex vector is stored as its real parts followed by its imaginary parts, slot kind by
slot kind (units, taps, children). All quantities are deviations from the no-load solution at nominal source
voltage and reference taps, which keeps float32 exact to its last digits.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.admittance import incidence, primitive, winding_admittance
from gridjax.branches import (
    Branches,
    ampacities,
    branch_matrices,
    bus_phases,
    in_series,
    step_admittances,
    tapped_transformers,
)
from gridjax.feeder import Feeder
from gridjax.layout import Group, Layout, Parameters, Shape, lay_out
from gridjax.powerflow.injections import Laws
from gridjax.validate import check


@flax.struct.dataclass
class OperatingPoint:
    """What is asked of a grid in one scenario; every field may carry a batch axis under `vmap`.

    Attributes:
      load_kw, load_kvar: (loads,) three-phase totals at rated voltage, positive when consumed.
      generation_kw, generation_kvar: (generators,) generators, PV systems, storages in this order; positive when
        produced.
      tap: (regulators,) turns ratio of each regulated winding, 1.0 at neutral.
      capacitor: (steps,) 1.0 for each capacitor step in service, 0.0 else, bank after bank.
      source_pu: (sources,) EMF of each source in per unit of its rating.
    """

    load_kw: jax.Array
    load_kvar: jax.Array
    generation_kw: jax.Array
    generation_kvar: jax.Array
    tap: jax.Array
    capacitor: jax.Array
    source_pu: jax.Array


@flax.struct.dataclass
class Zones:
    """Operators of all zones (see the module's text), real, (zones, rows, columns), and the no-load solution.

    Slots are split in units (u) and the inner ones, taps and children (i), which couple zones. `level_*` are the
    inner operators once more, level by level, (levels, width, rows, columns); the indices are `layout.Levels`.
    """

    z_uu: jax.Array
    z_ui: jax.Array
    z_iu: jax.Array
    w_u: jax.Array
    t_u: jax.Array
    n_u: jax.Array
    n_i: jax.Array
    n_head: jax.Array
    level_z: jax.Array
    level_w: jax.Array
    level_t: jax.Array
    u_ref: jax.Array  # (zones, 2 units)
    tap_ref: jax.Array  # (levels, width, 4 taps)
    v_ref: jax.Array  # (zones, 2 interior)
    zone: jax.Array
    child: jax.Array
    parent: jax.Array
    slot: jax.Array
    place: jax.Array


@flax.struct.dataclass
class Units:
    """Devices' phases in the zones' slots: (zones, units) arrays; empty slots have share 0."""

    laws: Laws
    device: jax.Array
    share: jax.Array
    is_bank: jax.Array
    volts: jax.Array
    nodes: jax.Array  # (zones, units, 2)
    emf: jax.Array  # (zones, 2 units) current of a further source at 1 pu, real then imaginary
    emf_source: jax.Array  # (zones, units) which source


@flax.struct.dataclass
class Taps:
    """Regulated phases in the zones' slots, (levels, width, taps); `regulator` is one past the last where empty."""

    regulator: jax.Array
    reference: jax.Array


@flax.struct.dataclass
class Grid:
    """A compiled feeder: a pytree of arrays that `solve` and the results need, and nothing else.

    Names and tables stay on the host, in the `Feeder`; order is theirs. `nominal` is the operating point as the
    feeder gives it.
    """

    nominal: OperatingPoint
    zones: Zones
    units: Units
    taps: Taps
    branches: dict[str, Branches]
    tapped: tuple[dict[str, jax.Array], ...]
    step_re: jax.Array
    step_im: jax.Array
    step_bank: jax.Array
    series_bank: jax.Array  # (banks,) 1.0 where a bank stands between two buses
    node_place: jax.Array
    node_volts: jax.Array
    bus_phases: jax.Array
    rating_a: dict[str, jax.Array]
    source_emf: jax.Array  # (2 heads,) the first source's EMF at 1 pu in the root zone's form
    emf_re: jax.Array  # (sources, conductors) all sources' EMF at 1 pu
    emf_im: jax.Array
    base_va: jax.Array
    shape: Shape = flax.struct.field(pytree_node=False)
    tapped_static: tuple = flax.struct.field(pytree_node=False)


def compile(  # the public name; shadows the builtin nowhere but here
    feeder: Feeder, *, dtype: object = None, zone_ports: int = 24, zone_nodes: int = 512
) -> Grid:
    """Turns a feeder into a grid.

    The operators are computed in float64 whatever the flags, then rounded to `dtype`.

    Args:
      feeder: the tables.
      dtype: float32 or float64; None takes JAX's default (float64 under `jax_enable_x64`).
      zone_ports: ports a zone should hold; affects speed, not results.
      zone_nodes: nodes a zone should hold; likewise.

    Returns:
      The grid, on the default device.

    Raises:
      ValueError: `validate(feeder)` finds problems; the message lists them by element.
    """
    check(feeder)
    dtype = jnp.zeros(0).dtype if dtype is None else np.dtype(dtype)  # type: ignore[arg-type]
    with jax.enable_x64(True):
        layout, parameters = lay_out(feeder, zone_ports, zone_nodes)
        lowered = jax.jit(functools.partial(assemble, layout)).lower(parameters)
        # It runs once: optimising it would take longer than running it.
        grid = lowered.compile(compiler_options={"xla_backend_optimization_level": "0"})(parameters)
        grid = jax.tree.map(np.asarray, grid)
    cast = functools.partial(_cast, dtype=dtype)
    return jax.tree.map(cast, grid)


def _cast(a: np.ndarray, dtype: np.dtype) -> jax.Array:
    return jnp.asarray(a, dtype if a.dtype.kind == "f" else np.int32)


def real(a: jax.Array, rows: list[int], columns: list[int]) -> jax.Array:
    """The real form of complex operators (..., r, c), blockwise: `rows`, `columns` are the sizes of the kinds.

    Each kind of a vector is stored as real parts, then imaginary parts.
    """
    blocks, i = [], 0
    for r in rows:
        line, j = [], 0
        for c in columns:
            b = a[..., i : i + r, j : j + c]
            top = jnp.concatenate([b.real, -b.imag], axis=-1)
            line.append(jnp.concatenate([top, jnp.concatenate([b.imag, b.real], axis=-1)], axis=-2))
            j += c
        blocks.append(jnp.concatenate(line, axis=-1))
        i += r
    return jnp.concatenate(blocks, axis=-2)


def assemble(layout: Layout, parameters: Parameters) -> Grid:
    """The jnp half of `compile`: from numbers to operators, differentiable and vmappable.

    Args:
      layout: from `lay_out`.
      parameters: of that layout, or changed values of the same shapes. Float64 is advised: ungrounded sections
        and switches of micro-ohms make the matrices stiff.

    Returns:
      A grid of the parameters' precision.
    """
    s = layout.shape
    parameters = jax.tree.map(jnp.asarray, parameters)
    base = jnp.asarray(1e6 * layout.feeder.base_mva, parameters.unit_volts.dtype)
    volts = jnp.asarray(layout.node_volts)
    primitives = [
        jax.vmap(functools.partial(primitive, g.static))(p)
        for g, p in zip(layout.groups, parameters.elements, strict=True)
    ]
    per_unit = [
        y * volts[g.nodes][:, :, None] * volts[g.nodes][:, None, :] / base
        for g, y in zip(layout.groups, primitives, strict=True)
    ]
    y, drops = _zone_matrices(layout, per_unit, base)
    ports = _ports(layout, parameters, volts, base)
    zones, emf = _reduce(layout, parameters, y, drops, ports)
    steps = step_admittances(layout, parameters, base)
    width = max(len(e) for e in _emf(layout, parameters))
    all_emf = jnp.stack([jnp.pad(e, (0, width - len(e))) for e in _emf(layout, parameters)])
    nominal = OperatingPoint(**{k: getattr(parameters, k) for k in OperatingPoint.__dataclass_fields__})
    static, tapped = tapped_transformers(layout, parameters)
    return Grid(
        nominal=nominal,
        zones=zones,
        units=_units(layout, parameters, per_unit, emf, base),
        taps=_tap_slots(layout, parameters),
        branches=branch_matrices(layout, primitives, base),
        tapped=tapped,
        step_re=steps.real,
        step_im=steps.imag,
        step_bank=jnp.asarray(layout.step_bank),
        series_bank=jnp.asarray([float(in_series(c)) for c in layout.feeder.capacitors]),
        node_place=jnp.asarray(layout.node_place),
        node_volts=volts,
        bus_phases=bus_phases(layout),
        rating_a=ampacities(layout),
        source_emf=_real_vector(emf[0]),
        emf_re=all_emf.real,
        emf_im=all_emf.imag,
        base_va=base,
        shape=s,
        tapped_static=static,
    )


def _real_vector(a: jax.Array) -> jax.Array:
    return jnp.concatenate([a.real, a.imag], axis=-1)


def _zone_matrices(layout: Layout, per_unit: list[jax.Array], base: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Nodal matrices of all zones over interior, head and ground nodes, before children are folded in.

    The switches are apart, in the coordinates of `layout.drops`; the last zone stands for none.
    """
    s = layout.shape
    size = s.interior + s.heads + 1
    count = len(layout.partition.zones)
    y = jnp.zeros((count + 1, size, size), per_unit[0].dtype)
    switches = jnp.zeros_like(y)
    for g, p in zip(layout.groups, per_unit, strict=True):
        if g.kind == "switches" and layout.drops is not None:
            n = g.local.shape[1] // 2
            t = layout.drops[g.zone[:, None], g.local]  # (elements, 2 n, size)
            volts = layout.node_volts[g.nodes][:, :, None]
            alike = np.abs(volts[:, :n] - volts[:, n:]) < 1e-9 * volts[:, :n]
            near = np.where(alike, t[:, :n] - t[:, n:], t[:, :n] - t[:, n:] * volts[:, n:] / volts[:, :n])
            series = jnp.diagonal(p, axis1=1, axis2=2)[:, :n]
            switches = switches.at[g.zone].add(jnp.einsum("ek,eki,ekj->eij", series, near, near))
            continue
        zone = g.zone[:, None, None]
        y = y.at[zone, g.local[:, :, None], g.local[:, None, :]].add(p)
        if g.kind == "sources" and g.rows[0] == 0:  # the EMF's side of the first source
            head = s.interior + np.arange(g.local.shape[1])
            i, j = g.local[0][:, None], head[None, :]
            y = y.at[0, i, j].add(-p[0]).at[0, j.T, i.T].add(-p[0]).at[0, j.T, j].add(p[0])
    return y, switches


def _ports(layout: Layout, parameters: Parameters, volts: jax.Array, base: jax.Array):
    """Where slots inject (F), what they see (G) and the direct term (D), over all zones."""
    s = layout.shape
    count = len(layout.partition.zones)
    size, m = s.interior + s.heads + 1, s.units + 2 * s.taps + s.children * s.heads
    dtype = jnp.result_type(volts, jnp.complex64)
    f = jnp.zeros((count, size, m), dtype)
    zone, slot = layout.unit_place // s.units, layout.unit_place % s.units
    for side, sign in ((0, 1.0), (1, -1.0)):
        ratio = sign * volts[layout.unit_nodes[:, side]] / parameters.unit_volts
        f = f.at[zone, layout.unit_local[:, side], slot].add(ratio.astype(dtype))
    z, c, h = np.nonzero(layout.child_local < s.interior)
    last = np.sum(layout.child_local < s.interior, axis=2)[z, c] - 1
    column = s.units + 2 * s.taps + c * s.heads + h
    f = f.at[z, layout.child_local[z, c, h], column].set(1.0)
    f = f.at[z, layout.child_local[z, c, last], column].add(np.where(h == last, 0.0, -1.0))
    g = jnp.swapaxes(f, 1, 2)
    d = jnp.zeros((count, m, m), dtype)
    for t in layout.taps:
        group: Group = layout.groups[t.group]
        params = {k: v[t.member] for k, v in parameters.elements[t.group].items()}
        scale = volts[group.nodes[t.member]]
        local, zone = group.local[t.member], t.zone[:, None]
        b = incidence(group.static)[t.phase] * scale[:, None, :]  # (phases, windings, conductors)
        y1 = jax.vmap(functools.partial(winding_admittance, group.static))(params)
        y1 = y1 * (t.volts / base)[:, None, None]
        tap = params["tap"]
        own = tap[:, t.winding]
        voltage = b[:, t.winding] / (own * t.volts)[:, None]
        current = jnp.einsum("ti,tij->tj", y1[:, t.winding] / tap, b.astype(dtype)) / own[:, None]
        e, j = (s.units + t.slot)[:, None], (s.units + s.taps + t.slot)[:, None]
        f = f.at[zone, local, e].add(current).at[zone, local, j].add(voltage)
        g = g.at[zone, e, local].add(voltage).at[zone, j, local].add(current)
        d = d.at[t.zone, e[:, 0], e[:, 0]].add(-1 / own).at[t.zone, j[:, 0], j[:, 0]].add(-1 / own)
        for u in layout.taps:  # the series voltages of all regulated windings drive this one's current
            if u.group == t.group:
                match = (t.member[:, None] == u.member) & (t.phase[:, None] == u.phase)
                i, k = np.nonzero(match)
                stiff = y1[i, t.winding, u.winding] * u.volts[k] / (own[i] * tap[i, u.winding])
                d = d.at[t.zone[i], j[i, 0], s.units + u.slot[k]].add(-stiff)
    return f, g, d


def _reduce(layout: Layout, parameters: Parameters, y, switches, ports) -> tuple[Zones, tuple]:
    """Kron reduction from the leaves, level by level, then the no-load solution from the root."""
    s, levels = layout.shape, layout.levels
    f, g, d = (jnp.concatenate([a, jnp.zeros_like(a[:1])]) for a in ports)
    n, h, m = s.interior, s.heads, f.shape[2]
    count = y.shape[0] - 1
    filled = np.zeros((count + 1, n), bool)
    filled.reshape(-1)[layout.node_place] = True
    y = y.at[:, np.arange(n), np.arange(n)].add(jnp.where(filled, 0.0, 1.0))
    drops = layout.drops
    if drops is not None:
        f, g = jnp.swapaxes(drops, 1, 2) @ f, g @ drops
        drops = jnp.asarray(drops, y.dtype)
    above = np.concatenate([np.full((1, levels.zone.shape[1]), count), levels.zone[:-1]])
    parent = np.take_along_axis(above, levels.parent, axis=1)

    def reduce_level(y, indices):
        zone, parent, at, absolute = indices
        yy, ff, gg = y[zone], f[zone], g[zone]
        if drops is not None:
            t_v = drops[zone]
            yy = jnp.swapaxes(t_v, 1, 2) @ yy @ t_v + switches[zone]
        right = jnp.concatenate([ff[:, :n], -yy[:, :n, n : n + h]], axis=2)
        solved = jnp.linalg.solve(yy[:, :n, :n], right)
        big_n, n_head = solved[:, :, :m], solved[:, :, m:]
        z = gg[:, :, :n] @ big_n + d[zone]
        w = gg[:, :, :n] @ n_head + gg[:, :, n : n + h]
        t = ff[:, n : n + h] - yy[:, n : n + h, :n] @ big_n
        y_in = yy[:, n : n + h, n : n + h] + yy[:, n : n + h, :n] @ n_head
        y_in = jnp.where((zone < count)[:, None, None], y_in, 0.0)
        y = y.at[parent[:, None, None], at[:, :, None], at[:, None, :]].add(y_in)
        if drops is not None:
            inside = t_v[:, :n, :n]
            big_n, n_head = inside @ big_n, inside @ n_head + t_v[:, :n, n : n + h]
        return y, (z, w @ absolute, jnp.swapaxes(absolute, 1, 2) @ t, big_n, n_head @ absolute)

    heads = _head_coordinates(layout)
    indices = (levels.zone, parent, levels.head_local, heads)
    _, by_level = jax.lax.scan(reduce_level, y, jax.tree.map(jnp.asarray, indices), reverse=True)
    emf = _emf(layout, parameters)
    root = jnp.zeros(h, y.dtype).at[: emf[0].shape[0]].set(emf[0])
    root = np.linalg.inv(heads[0, 0]) @ root
    heads = _no_load(layout, by_level[1], root * parameters.source_pu[0])
    kinds = [s.units, 2 * s.taps, s.children * h]
    ops = [real(a, r, c) for a, r, c in zip(
        by_level, (kinds, kinds, [h], [n], [n]), (kinds, [h], kinds, kinds, [h]), strict=True
    )]  # fmt: skip
    y_ref = _real_kinds(jnp.einsum("lwij,lwj->lwi", by_level[1], heads), kinds)
    v_ref = _real_vector(jnp.einsum("lwij,lwj->lwi", by_level[4], heads))
    z, w, t, big_n, n_head, y_u, v_ref = (a.reshape(-1, *a.shape[2:])[levels.place] for a in (*ops, y_ref, v_ref))
    u, i = 2 * s.units, 2 * s.units + 4 * s.taps
    zones = Zones(
        z_uu=z[:, :u, :u], z_ui=z[:, :u, u:], z_iu=z[:, u:, :u], w_u=w[:, :u], t_u=t[:, :, :u],
        n_u=big_n[:, :, :u], n_i=big_n[:, :, u:], n_head=n_head,
        level_z=ops[0][:, :, u:, u:], level_w=ops[1][:, :, u:], level_t=ops[2][:, :, :, u:],
        u_ref=y_u[:, :u], tap_ref=y_ref[:, :, u:i], v_ref=v_ref,
        **{k: jnp.asarray(getattr(levels, k)) for k in ("zone", "child", "parent", "slot", "place")},
    )  # fmt: skip
    return zones, (root, *emf[1:])


def _head_coordinates(layout: Layout) -> np.ndarray:
    """Node voltages from head coordinates, (levels, width, heads, heads): adds the last node's to the others'."""
    h, levels = layout.shape.heads, layout.levels
    out = np.tile(np.eye(h), (levels.zone.size + 1, 1, 1))
    for place, count in zip(levels.place, layout.head_count, strict=True):
        out[place, : count - 1, count - 1] = 1.0
    return out[:-1].reshape(*levels.zone.shape, h, h)


def _no_load(layout: Layout, w: jax.Array, root: jax.Array) -> jax.Array:
    """Head voltages of all zones without units and at reference taps, (levels, width, heads)."""
    s, levels = layout.shape, layout.levels
    start = s.units + 2 * s.taps

    def down(children, inputs):
        w, parent, slot = inputs
        head = children[parent, slot]
        below = jnp.einsum("wij,wj->wi", w[:, start:], head)
        return below.reshape(children.shape), head

    first = jnp.zeros((levels.zone.shape[1], s.children, s.heads), w.dtype).at[0, 0].set(root)
    inputs = (w, jnp.asarray(levels.parent), jnp.asarray(levels.slot))
    return jax.lax.scan(down, first, inputs)[1]


def _real_kinds(a: jax.Array, kinds: list[int]) -> jax.Array:
    parts = jnp.split(a, np.cumsum(kinds)[:-1], axis=-1)
    return jnp.concatenate([_real_vector(p) for p in parts], axis=-1)


def _emf(layout: Layout, parameters: Parameters) -> tuple[jax.Array, ...]:
    """Each source's EMF at 1 pu, a phasor a phase, in per unit of its bus."""
    out = []
    for i, source in enumerate(layout.feeder.sources):
        bus = source.bus.partition(".")[0]
        phases = source.bus.count(".")
        base = 1e3 * next(b.base_kv for b in layout.feeder.buses if b.name == bus)
        angle = parameters.emf_angle[i] - 2 * np.pi * np.arange(phases) / phases
        out.append(parameters.emf_volts[i] / base * jnp.exp(1j * angle))
    return tuple(out)


def _units(layout: Layout, parameters: Parameters, per_unit, emf, base) -> Units:
    """Places every unit's law and indices in the zones' slots."""
    s = layout.shape
    shape = (len(layout.partition.zones), s.units)
    devices = s.loads + s.generators

    def place(values, empty):
        flat = jnp.full(shape[0] * shape[1], empty, jnp.asarray(values).dtype)
        return flat.at[layout.unit_place].set(values).reshape(shape)

    idle = {"impedance_p": 1.0, "impedance_q": 1.0, "vmax": 1e9, "vlow": -1.0, "cutoff": -1.0}
    laws = Laws(**{k: place(getattr(parameters.laws, k), idle.get(k, 1.0)) for k in Laws.__dataclass_fields__})
    bank = (layout.unit_device >= devices) & (layout.unit_share > 0)
    nodes = jnp.full((shape[0] * shape[1], 2), s.nodes).at[layout.unit_place].set(layout.unit_nodes)
    # Norton currents of further sources: I = y E, in the units' per unit.
    current = jnp.zeros(shape[0] * shape[1], jnp.result_type(base, jnp.complex64))
    sources = layout.unit_device - devices - len(layout.feeder.capacitors)
    for group, y in zip(layout.groups, per_unit, strict=True):
        for i, row in enumerate(group.rows if group.kind == "sources" else ()):
            if row > 0:
                chosen = np.nonzero((sources == row - 1) & (layout.unit_share == 0))[0]
                volts = layout.node_volts[group.nodes[i]]
                amps = (y[i] @ emf[row]) / volts * parameters.unit_volts[chosen]
                current = current.at[layout.unit_place[chosen]].set(amps)
    return Units(
        laws=laws,
        device=place(jnp.asarray(np.where(bank, layout.unit_device - devices, layout.unit_device)), 0),
        share=place(jnp.asarray(layout.unit_share), 0.0),
        is_bank=place(jnp.asarray(bank.astype(float)), 0.0),
        volts=place(parameters.unit_volts, 1.0),
        nodes=nodes.reshape(*shape, 2),
        emf=_real_vector(current.reshape(shape)),
        emf_source=place(jnp.asarray(np.maximum(sources + 1, 0)), 0),
    )


def _tap_slots(layout: Layout, parameters: Parameters) -> Taps:
    s, levels = layout.shape, layout.levels
    none = [np.zeros(0, int)]
    zone, slot, regulator = (
        np.concatenate(none + [getattr(t, k) for t in layout.taps]) for k in ("zone", "slot", "regulator")
    )
    shape, at = (*levels.zone.shape, s.taps), levels.place[zone] * s.taps + slot
    reference = jnp.ones(np.prod(shape), parameters.tap.dtype).at[at].set(parameters.tap[regulator])
    return Taps(
        regulator=jnp.full(np.prod(shape), s.regulators).at[at].set(regulator).reshape(shape),
        reference=reference.reshape(shape),
    )
