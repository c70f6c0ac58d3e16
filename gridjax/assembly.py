r"""Compiling a feeder: from impedances to the linear operators of its zones.

Everything linear is eliminated once. In a zone, interior nodes i and boundary nodes h obey, in per unit,

    Y_ii v_i + Y_ih v_h = F_i x,        I_h = Y_hi v_i + Y_hh v_h - F_h x,

where x are the inputs of its slots: currents of units, compensation of taps. The slots' outputs are
`y = G_i v_i + G_h v_h + D x`. Kron reduction (G. Kron, 1939) gives

    v_i = N x + N_h v_h     N = Y_ii^-1 F_i,          N_h = -Y_ii^-1 Y_ih
    y   = Z x + W v_h       Z = G_i N + D,            W = G_i N_h + G_h
    I_h = Y_in v_h - T x    T = F_h - Y_hi N,         Y_in = Y_hh + Y_hi N_h.

Seen from its boundary a zone is thus an admittance `Y_in` and Norton currents `T x`. A zone of the next tier is the
circuit of its members' `Y_in`, its inputs are their Norton currents, and its outputs their boundary voltages, so it is
reduced by the same equations, and so on up to one zone whose boundary is the EMF of the first source. One pass up the
tiers (`x' = T x`) and one down (`y = Z x + W v_h`) solve the whole linear circuit exactly, whatever it contains.

Taps. A winding at tap t sees `w = v/t` of its terminal voltage v and sends `i_r = t i` for the terminal current i.
The operators hold the tap at its reference t0; what differs is compensated by a series voltage and a current
behind the ideal ratio,

    e = (t - t0) w,    j = (t - t0) i,    w = (v - e)/t0,    i = ((Y1 w)_r - j)/t0,

with Y1 the transformer's winding admittance. Both inputs hardly disturb their own outputs (w is set upstream, i
downstream), so no matrix depends on a tap, and regulators may stand anywhere: in loops, in open delta, ganged, on any
winding. To the sweep the two slots of a tap are units of constant impedance with the power t - t0.

Boundary coordinates: the voltages of a boundary bus's nodes are taken as differences from its last node,
`v_k - v_last`, and that node's own; the currents accordingly as those of the other nodes, and the sum of all. In
ungrounded circuits the sum is tiny and meets an enormous impedance, so it must not be a difference of rounded numbers.

Real coordinates: every complex vector is stored as its real parts followed by its imaginary parts, in tiers above the
lowest member by member. All quantities are deviations from the no-load solution at nominal source voltage and
reference taps, which keeps float32 exact to its last digits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import cast

import jax
import numpy as np
from numpy.typing import DTypeLike

from gridjax import layout as tables
from gridjax.admittance import incidence, primitive, winding_admittance
from gridjax.branches import (
    ampacities,
    branch_matrices,
    branch_nodes,
    bus_phases,
    in_series,
    step_admittances,
    transformer_taps,
)
from gridjax.feeder import Feeder
from gridjax.grid import Chord, Grid, OperatingPoint, Tier, Units, Zones
from gridjax.junctions import junctions
from gridjax.layout import Group, Layout, Parameters, lay_out
from gridjax.namespace import Array, add_at, einsum, matmul, namespace, set_at
from gridjax.powerflow.chord import linearize
from gridjax.powerflow.injections import IMPEDANCE, Laws
from gridjax.tree import plant
from gridjax.validate import check

Around = Callable[[OperatingPoint], OperatingPoint]


def compile(  # the public name; shadows the builtin nowhere but here
    feeder: Feeder,
    *,
    dtype: DTypeLike | None = None,
    around: Around | None = None,
    zone_ports: int = 24,
    zone_nodes: int = 512,
) -> Grid:
    """Turns a feeder into a grid.

    The operators are computed in float64 whatever the flags, then rounded to `dtype`.

    Args:
      feeder: the tables.
      dtype: float32 or float64; None takes JAX's default (float64 under `jax_enable_x64`).
      around: from the tables' operating point to one amid those that will be solved, such as
        `lambda point: point.replace(load_kw=0.5 * point.load_kw, load_kvar=0.5 * point.load_kvar)`. Iterations start
        there and are linearised there: the nearer, the fewer. It affects speed, not results.
      zone_ports: ports a zone should hold; likewise.
      zone_nodes: nodes a zone should hold; likewise.

    Returns:
      The grid, on the default device.

    Raises:
      ValueError: `validate(feeder)` finds problems; the message lists them by element.
    """
    check(feeder)
    dtype = jax.dtypes.canonicalize_dtype(float) if dtype is None else np.dtype(dtype)
    layout, parameters = lay_out(feeder, zone_ports, zone_nodes)
    grid = assemble(layout, parameters, around)
    if dtype == np.float32:
        grid = _with_junctions(layout, grid)
    return jax.tree.map(functools.partial(_cast, dtype=dtype), grid)


def _cast(a: np.ndarray, dtype: np.dtype) -> jax.Array:
    """Converted in NumPy: for JAX each shape would be a program of its own. The chord is float32 whatever the rest."""
    a = np.asarray(a)
    return jax.device_put(a if a.dtype == np.float32 else a.astype(dtype if a.dtype.kind == "f" else np.int32))


def real(a: jax.Array, rows: list[int], columns: list[int]) -> jax.Array:
    """The real form of complex operators (..., r, c), blockwise: `rows`, `columns` are the sizes of the kinds.

    Each kind of a vector is stored as real parts, then imaginary parts.
    """
    xp = namespace(a)
    blocks, i = [], 0
    for r in rows:
        line, j = [], 0
        for c in columns:
            b = a[..., i : i + r, j : j + c]
            top = xp.concatenate([b.real, -b.imag], axis=-1)
            line.append(xp.concatenate([top, xp.concatenate([b.imag, b.real], axis=-1)], axis=-2))
            j += c
        blocks.append(xp.concatenate(line, axis=-1))
        i += r
    return xp.concatenate(blocks, axis=-2)


def assemble(layout: Layout, parameters: Parameters, around: Around | None = None) -> Grid:
    """The second half of `compile`: from numbers to operators, differentiable and vmappable.

    Args:
      layout: from `lay_out`.
      parameters: of that layout, or changed values of the same shapes. Float64 is advised: ungrounded sections
        and switches of micro-ohms make the matrices stiff.
      around: as of `compile`.

    Returns:
      A grid of the parameters' precision: NumPy arrays where all parameters are, else JAX's.
    """
    s, xp = layout.shape, namespace(parameters)
    parameters = jax.tree.map(xp.asarray, parameters)
    base = xp.asarray(1e6 * layout.feeder.base_mva, parameters.unit_volts.dtype)
    volts = xp.asarray(layout.node_volts)
    primitives = [primitive(g.static, p) for g, p in zip(layout.groups, parameters.elements, strict=True)]
    per_unit = [
        y * volts[g.nodes][:, :, None] * volts[g.nodes][:, None, :] / base
        for g, y in zip(layout.groups, primitives, strict=True)
    ]
    y, drops = _zone_matrices(layout, per_unit, base)
    ports = _ports(layout, parameters, volts, base)
    zones, emf = _zones(layout, parameters, y, drops, ports)
    steps = step_admittances(layout, parameters, base)
    width = max(len(e) for e in _emf(layout, parameters))
    all_emf = xp.stack([xp.pad(e, (0, width - len(e))) for e in _emf(layout, parameters)])
    nominal = OperatingPoint(**{k: getattr(parameters, k) for k in OperatingPoint.__dataclass_fields__})
    nodes = branch_nodes(layout)
    branches, units = branch_matrices(layout, primitives, base, nodes), _units(layout, parameters, per_unit, emf, base)
    grid = Grid(
        nominal=nominal,
        zones=zones,
        chord=cast(Chord, None),  # made from the rest, below
        tree=None,
        units=units,
        tap_reference=parameters.tap,
        branches=branches,
        taps=transformer_taps(layout, parameters, nodes),
        junctions=None,
        step_re=steps.real,
        step_im=steps.imag,
        step_bank=xp.asarray(layout.step_bank),
        series_bank=xp.asarray([float(in_series(c)) for c in layout.feeder.capacitors]),
        node_place=xp.asarray(layout.node_place),
        node_volts=volts,
        bus_phases=bus_phases(layout),
        rating_a=ampacities(layout),
        source_emf=_real_vector(emf[0]),
        emf_re=all_emf.real,
        emf_im=all_emf.imag,
        base_va=base,
        shape=s,
    )
    amid = nominal if around is None else jax.tree.map(lambda a, b: xp.asarray(b, a.dtype), nominal, around(nominal))
    grid = dataclasses.replace(grid, chord=linearize(grid, amid))
    if xp is np:
        windings = tapped_windings(layout, parameters, volts, base)
        grid = dataclasses.replace(grid, tree=plant(layout, per_unit, grid.chord, windings, parameters.unit_volts))
    if parameters.unit_volts.dtype == np.float32:
        grid = _with_junctions(layout, grid)
    return jax.tree.map(xp.asarray, grid)


def _with_junctions(layout: Layout, grid: Grid) -> Grid:
    return dataclasses.replace(grid, junctions=junctions(layout, grid.branches, grid.units.volts, grid.base_va))


def _real_vector(a: Array) -> Array:
    return namespace(a).concatenate([a.real, a.imag], axis=-1)


def _zone_matrices(layout: Layout, per_unit: list[Array], base: Array) -> tuple[Array, Array]:
    """Nodal matrices of the lowest tier's zones over interior, boundary and ground nodes.

    The switches and the first source are apart, in the coordinates of `layout.drops`.
    """
    s = layout.shape
    size = s.interior + s.boundary + 1
    xp = namespace(per_unit)
    y = xp.zeros((len(layout.partition.zones), size, size), per_unit[0].dtype)
    switches = xp.zeros_like(y)
    for g, p in zip(layout.groups, per_unit, strict=True):
        first = g.kind == "sources" and g.rows[0] == 0
        if g.kind == "switches" or first:
            n = g.local.shape[1] if first else g.local.shape[1] // 2
            here = layout.drops[g.zone[:, None], g.local[:, :n]]  # (elements, n, size)
            if first:
                drop = here - layout.drops[g.zone[:, None], s.interior + np.arange(n)[None]]
            else:
                there, volts = layout.drops[g.zone[:, None], g.local[:, n:]], layout.node_volts[g.nodes][:, :, None]
                alike = np.abs(volts[:, :n] - volts[:, n:]) < 1e-9 * volts[:, :n]
                drop = np.where(alike, here - there, here - there * volts[:, n:] / volts[:, :n])
            series = p[:, :n, :n]
            switches = add_at(switches, g.zone, einsum("ekl,eki,elj->eij", series, drop, drop))
            continue
        y = add_at(y, (g.zone[:, None, None], g.local[:, :, None], g.local[:, None, :]), p)
    return y, switches


@dataclasses.dataclass
class TappedWindings:
    """How the two slots of each phase of `layout.taps` act on their transformer's conductors, (phases, conductors).

    `e_in`, `j_in`: currents that the slots' inputs inject; `w_out`, `i_out`: what their outputs take from the voltages;
    `own`: the winding's tap. `direct`: for each regulated winding of the same transformers its number, and phases i
    whose `i_out` phases k of it drive by `-stiff`.
    """

    e_in: Array
    j_in: Array
    w_out: Array
    i_out: Array
    own: Array
    direct: list[tuple[int, np.ndarray, np.ndarray, Array]]


def tapped_windings(layout: Layout, parameters: Parameters, volts: Array, base: Array) -> list[TappedWindings]:
    """One for each of `layout.taps`."""
    out, xp = [], namespace(volts)
    dtype = xp.result_type(volts, np.complex64)
    for t in layout.taps:
        group: Group = layout.groups[t.group]
        params = {k: v[t.member] for k, v in parameters.elements[t.group].items()}
        scale = volts[group.nodes[t.member]]
        b = incidence(group.static)[t.phase] * scale[:, None, :]  # (phases, windings, conductors)
        y1 = winding_admittance(group.static, params)
        rated = t.va / base  # currents are counted in the winding's rating, so that all slots are of order one
        y1 = y1 * (t.volts / base)[:, None, None]
        tap = params["tap"]
        own = tap[:, t.winding]
        voltage = b[:, t.winding] / (own * t.volts)[:, None]
        current = einsum("ti,tij->tj", y1[:, t.winding] / tap, b.astype(dtype)) / own[:, None]
        direct = []
        for other, u in enumerate(layout.taps):  # the series voltages of all regulated windings drive this one's
            if u.group == t.group:
                i, k = np.nonzero((t.member[:, None] == u.member) & (t.phase[:, None] == u.phase))
                stiff = y1[i, t.winding, u.winding] * u.volts[k] / (own[i] * tap[i, u.winding] * rated[i])
                direct.append((other, i, k, stiff))
        out.append(TappedWindings(current, voltage * rated[:, None], voltage, current / rated[:, None], own, direct))
    return out


def _ports(layout: Layout, parameters: Parameters, volts: Array, base: Array):
    """Where slots inject (F), what they see (G) and the direct term (D), over the lowest tier's zones."""
    s = layout.shape
    count = len(layout.partition.zones)
    size, m = s.interior + s.boundary + 1, s.slots
    xp = namespace(volts)
    dtype = xp.result_type(volts, np.complex64)
    f = xp.zeros((count, size, m), dtype)
    zone, slot = layout.unit_place // m, layout.unit_place % m
    for side, sign in ((0, 1.0), (1, -1.0)):
        ratio = sign * volts[layout.unit_nodes[:, side]] / parameters.unit_volts
        f = add_at(f, (zone, layout.unit_local[:, side], slot), ratio.astype(dtype))
    g = xp.swapaxes(f, 1, 2)
    d = xp.zeros((count, m, m), dtype)
    for t, tap in zip(layout.taps, tapped_windings(layout, parameters, volts, base), strict=True):
        local, zone = layout.groups[t.group].local[t.member], t.zone[:, None]
        e, j = t.slot[:, None], t.slot[:, None] + 1
        f = add_at(add_at(f, (zone, local, e), tap.e_in), (zone, local, j), tap.j_in)
        g = add_at(add_at(g, (zone, e, local), tap.w_out), (zone, j, local), tap.i_out)
        for k in (e[:, 0], j[:, 0]):
            d = add_at(d, (t.zone, k, k), -1 / tap.own)
        for other, i, k, stiff in tap.direct:
            d = add_at(d, (t.zone[i], j[i, 0], layout.taps[other].slot[k]), -stiff)
    return f, g, d


def _reduce(y, ports, absolute, n: int):
    """Kron reduction of zones over interior nodes (`n`), boundary nodes and the ground.

    Args:
      y: (zones, size, size) nodal matrices.
      ports: F, G, D.
      absolute: (zones, boundary, boundary), see `_boundary_coordinates`.
      n: how many nodes are interior.

    Returns:
      Z, W, T in boundary coordinates; N and N_h over interior nodes; Y_in in node coordinates.
    """
    f, g, d = ports
    xp = namespace(y)
    m, h = f.shape[2], absolute.shape[1]
    right = xp.concatenate([f[:, :n], -y[:, :n, n : n + h]], axis=2)
    solved = xp.linalg.solve(y[:, :n, :n], right)
    big_n, n_boundary = solved[:, :, :m], solved[:, :, m:]
    z = matmul(g[:, :, :n], big_n) + d
    w = matmul(g[:, :, :n], n_boundary) + g[:, :, n : n + h]
    t = f[:, n : n + h] - matmul(y[:, n : n + h, :n], big_n)
    y_in = y[:, n : n + h, n : n + h] + matmul(y[:, n : n + h, :n], n_boundary)
    return z, matmul(w, absolute), matmul(xp.swapaxes(absolute, 1, 2), t), big_n, matmul(n_boundary, absolute), y_in


def _zones(layout: Layout, parameters: Parameters, y, switches, ports) -> tuple[Zones, tuple]:
    """Kron reduction tier by tier, then the no-load solution from the top; also the sources' EMF."""
    s, n, xp = layout.shape, layout.shape.interior, namespace(y)
    filled = np.zeros((y.shape[0], n + s.boundary), bool)
    filled.reshape(-1)[layout.node_place] = True
    y = add_at(y, (slice(None), np.arange(n), np.arange(n)), np.where(filled[:, :n], 0.0, 1.0))
    f, g, d = ports
    t_v = xp.asarray(layout.drops, y.dtype)
    y = matmul(matmul(xp.swapaxes(t_v, 1, 2), y), t_v) + switches
    f, g = matmul(xp.swapaxes(t_v, 1, 2), f), matmul(g, t_v)
    absolute = _boundary_coordinates(layout.last)
    z, w, t, big_n, n_boundary, y_in = _reduce(y, (f, g, d), absolute, n)
    big_n = matmul(t_v[:, :n, :n], big_n)
    n_boundary = matmul(t_v[:, :n, :n], n_boundary) + matmul(t_v[:, :n, n:-1], absolute)
    # The boundary's own voltages, so that every node is in a zone.
    big_n = xp.concatenate([big_n, xp.zeros((y.shape[0], s.boundary, s.slots), y.dtype)], axis=1)
    n_boundary = xp.concatenate([n_boundary, xp.asarray(absolute, y.dtype)], axis=1)
    tiers = [(z, w, t)]
    kinds = [[s.slots]]
    for tier in layout.tiers:
        below, h = y_in, tier.local.shape[2]
        y, ports = _compose(tier, below, layout.last if len(tiers) == 1 else layout.tiers[len(tiers) - 2].last)
        absolute = _boundary_coordinates(tier.last)
        *operators, _, _, y_in = _reduce(y, ports, absolute, tier.filled.shape[1])
        tiers.append(tuple(operators))
        kinds.append([h] * tier.member.shape[1])
    emf = _emf(layout, parameters)
    head_form = np.linalg.inv(absolute[0])
    top = matmul(head_form, xp.pad(emf[0], (0, absolute.shape[1] - emf[0].shape[0])))
    head_y = matmul(matmul(absolute.swapaxes(1, 2), y_in), absolute)[0]
    boundary = (top * parameters.source_pu[0])[None]
    head_ref = _real_vector(boundary[0])
    for tier, (_, w, _) in zip(layout.tiers[::-1], tiers[:0:-1], strict=True):
        outputs = einsum("zij,zj->zi", w, boundary)
        boundary = outputs.reshape(-1, tier.local.shape[2])[tier.place]
    zones = Zones(
        tiers=tuple(_tier(o, k, t) for o, k, t in zip(tiers, kinds, (None, *layout.tiers), strict=True)),
        n=real(big_n, [big_n.shape[1]], [s.slots]),
        n_boundary=real(n_boundary, [big_n.shape[1]], [s.boundary]),
        u_ref=_real_vector(einsum("zij,zj->zi", tiers[0][1], boundary)),
        v_ref=_real_vector(einsum("zij,zj->zi", n_boundary, boundary)),
        head_y=real(head_y, [len(head_y)], [len(head_y)]),
        head_ref=head_ref,
        head_form=head_form,
    )
    return zones, (top, *emf[1:])


def _tier(operators, kinds: list[int], tier: tables.Tier | None) -> Tier:
    z, w, t = operators
    h, xp = [w.shape[2]], namespace(z)
    none = np.zeros((0, 0), int), np.zeros(0, int)
    member, place = none if tier is None else (tier.member, tier.place)
    return Tier(
        z=real(z, kinds, kinds), w=real(w, kinds, h), t=real(t, h, kinds),
        member=xp.asarray(member), place=xp.asarray(place),
    )  # fmt: skip


def _compose(tier: tables.Tier, y_in: Array, last: np.ndarray):
    """Nodal matrices of a tier's zones from the admittances of the tier below, and F, G, D of the members' boundaries.

    `last` is the lower tier's.
    """
    zones, members, h = tier.local.shape
    n, size = tier.filled.shape[1], tier.filled.shape[1] + tier.last.shape[1] + 1
    at = np.arange(zones)[:, None, None, None]
    used = tier.local < size - 1
    xp = namespace(y_in)
    blocks = xp.where((used[..., :, None] & used[..., None, :]), y_in[tier.member], 0.0)
    y = xp.zeros((zones, size, size), y_in.dtype)
    y = add_at(y, (at, tier.local[..., :, None], tier.local[..., None, :]), blocks)
    y = add_at(y, (slice(None), np.arange(n), np.arange(n)), np.where(tier.filled, 0.0, 1.0))
    f = np.zeros((zones, size, members, h))
    z, m, k = np.nonzero(used)
    end = last[tier.member[z, m], k]
    f[z, tier.local[z, m, k], m, k] = 1.0
    np.subtract.at(f, (z, tier.local[z, m, end], m, k), np.where(k == end, 0.0, 1.0))
    f = f.reshape(zones, size, members * h)
    f = f.astype(y.dtype)
    return y, (f, np.swapaxes(f, 1, 2), np.zeros((), y.dtype))


def _boundary_coordinates(last: np.ndarray) -> np.ndarray:
    """Node voltages from boundary coordinates, (zones, boundary, boundary): adds the last node's to the others'."""
    zones, h = last.shape
    out = np.tile(np.eye(h), (zones, 1, 1))
    z, k = np.nonzero(last != np.arange(h))
    out[z, k, last[z, k]] = 1.0
    return out


def _emf(layout: Layout, parameters: Parameters) -> tuple[Array, ...]:
    """Each source's EMF at 1 pu, a phasor a phase, in per unit of its bus."""
    out, xp = [], namespace(parameters.emf_volts, parameters.emf_angle)
    for i, source in enumerate(layout.feeder.sources):
        bus = source.bus.partition(".")[0]
        phases = source.bus.count(".")
        base = 1e3 * next(b.base_kv for b in layout.feeder.buses if b.name == bus)
        angle = parameters.emf_angle[i] - 2 * np.pi * np.arange(phases) / phases
        out.append(parameters.emf_volts[i] / base * xp.exp(1j * angle))
    return tuple(out)


def _units(layout: Layout, parameters: Parameters, per_unit, emf, base) -> Units:
    """Places every unit's law and indices in the zones' slots."""
    s, xp = layout.shape, namespace(parameters)
    shape = (len(layout.partition.zones), s.slots)
    size = shape[0] * shape[1]

    def place(values, empty):
        return set_at(np.full(size, empty, values.dtype), layout.unit_place, values)

    laws = {k: place(getattr(parameters.laws, k), IMPEDANCE[k]) for k in Laws.__dataclass_fields__}
    none = s.devices + s.banks + s.regulators
    known = layout.unit_device < s.devices + s.banks
    device = place(np.where(known, layout.unit_device, none), none)
    share = place(np.where(known, layout.unit_share, 0.0), 0.0)
    for t in layout.taps:
        at = (t.zone * s.slots + t.slot)[:, None] + np.arange(2)
        device = set_at(device, at, (s.devices + s.banks + t.regulator)[:, None])
        share = set_at(share, at, 1.0)
    nodes = set_at(np.full((size, 2), s.nodes), layout.unit_place, layout.unit_nodes)
    # Norton currents of further sources: I = y E, in the units' per unit.
    current = xp.zeros(size, xp.result_type(base, np.complex64))
    sources = layout.unit_device - s.devices - s.banks
    for group, y in zip(layout.groups, per_unit, strict=True):
        for i, row in enumerate(group.rows if group.kind == "sources" else ()):
            if row > 0:
                chosen = np.nonzero(sources == row - 1)[0]
                volts = layout.node_volts[group.nodes[i]]
                amps = matmul(y[i], emf[row]) / volts * parameters.unit_volts[chosen]
                current = set_at(current, layout.unit_place[chosen], amps)
    units = Units(
        laws=Laws(**laws),
        device=device,
        share=share,
        volts=place(parameters.unit_volts, 1.0),
        nodes=nodes,
        emf=xp.zeros(0),
        emf_source=place(np.maximum(sources + 1, 0), 0),
    )
    units = jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]) if a.size else a, units)
    return units.replace(emf=_real_vector(current.reshape(shape)))
