"""Grids of different feeders in one shape, for `vmap` over feeders."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import overload

import jax
import numpy as np

from gridjax.branches import Branches, Taps
from gridjax.grid import Chord, Grid, OperatingPoint, Tier, Units
from gridjax.junctions import Junctions
from gridjax.layout import Shape
from gridjax.namespace import Array
from gridjax.powerflow.injections import IMPEDANCE, Laws
from gridjax.tree import Tree

Dims = tuple[int, ...]
EMPTY = {"tap": 1.0, "source_pu": 1.0}  # of an operating point; the rest is 0


@overload
def stack(items: Sequence[Grid]) -> Grid: ...
@overload
def stack(items: Sequence[OperatingPoint]) -> OperatingPoint: ...
def stack(items):
    """Pads grids, or operating points, to one shape and stacks them along a new first axis.

        grids = gridjax.stack([gridjax.compile(f) for f in (feeders.ieee13(), feeders.ieee123())])
        flows = jax.vmap(gridjax.solve)(grids, grids.nominal)

    Padding changes no result. The nodes, devices and elements of each feeder come first, in their order; nodes that a
    feeder does not have stand at voltage 0, its missing devices have no power whatever the point asks of them.

    Args:
      items: grids of one precision; or operating points, one for each of the grids and in their order, whose fields
        may have batch axes in front, the same in all.

    Returns:
      A grid whose arrays, `nominal` among them, have a first axis of `len(items)`; or a point like it.

    Raises:
      TypeError: items of other or of both kinds.
      ValueError: nothing to stack, grids of different precision, or a grid that is a stack already.
    """
    if not items:
        raise ValueError("there is nothing to stack")
    if all(isinstance(item, OperatingPoint) for item in items):
        return _stack_points(items)
    if not all(isinstance(item, Grid) for item in items):
        found = sorted({type(item).__name__ for item in items})
        raise TypeError(f"stack takes grids only, or operating points only, not {' and '.join(found)}")
    if any(grid.base_va.ndim for grid in items):
        raise ValueError("one of the grids is a stack already: stack all single grids at once")
    precisions = sorted({str(grid.zones.n.dtype) for grid in items})
    if len(precisions) > 1:
        raise ValueError(f"the grids have different precision ({', '.join(precisions)}): compile all with one dtype")
    grids = [jax.tree.map(np.asarray, grid) for grid in items]
    shape = _common_shape([grid.shape for grid in grids], [grid.zones.v_ref.shape[1] // 2 for grid in grids])
    boundaries, members = _tier_sizes(grids)
    zones = max(len(grid.zones.u_ref) for grid in grids)
    kinds = {k: _branch_sizes(grids, k) for k in sorted({k for grid in grids for k in grid.branches})}
    ends = tuple(n for (n,) in _largest([grid.taps.ground_re for grid in grids]))
    meeting = _meeting(grids, list(kinds))
    trees = _trees(grids, shape.slots)
    padded = []
    for grid, tree in zip(grids, trees, strict=True):
        s, place = grid.shape, _Padding(grid.shape, shape)
        rows = (2, shape.interior + shape.boundary)
        old_rows = (2, grid.zones.v_ref.shape[1] // 2)
        slots, old_slots = (2, shape.slots), (2, s.slots)
        head, old_head = (2, boundaries[-1]), (2, grid.zones.head_ref.shape[0] // 2)

        def by_slot(a, old_slots=old_slots, slots=slots):
            return _pad(a, [(a.shape[0],), old_slots], [(zones,), slots])

        zs = grid.zones
        tiers = _tiers(zs.tiers, old_slots, slots, zones, boundaries, members)
        h0, old_h0 = (2, boundaries[0]), (2, zs.tiers[0].t.shape[1] // 2)
        z = (len(zs.u_ref),)
        new_zones = dataclasses.replace(
            zs,
            tiers=tiers,
            n=_pad(zs.n, [z, old_rows, old_slots], [(zones,), rows, slots]),
            n_boundary=_pad(zs.n_boundary, [z, old_rows, old_h0], [(zones,), rows, h0]),
            u_ref=by_slot(zs.u_ref),
            v_ref=_pad(zs.v_ref, [z, old_rows], [(zones,), rows]),
            head_y=_pad(zs.head_y, [old_head, old_head], [head, head]),
            head_ref=_pad(zs.head_ref, [old_head], [head]),
            head_form=_pad(zs.head_form, [old_head[1:]] * 2, [head[1:]] * 2),
        )
        chord = Chord(
            _tiers(grid.chord.tiers, old_slots, slots, zones, boundaries, members),
            *(by_slot(a) for a in (grid.chord.by_re, grid.chord.by_im, grid.chord.u)),
        )
        local, zone = grid.node_place % old_rows[1], grid.node_place // old_rows[1]
        node_place: Array = np.full(shape.nodes, rows[1] - 1, grid.node_place.dtype)  # a row of zeros
        node_place[: s.nodes] = zone * rows[1] + local
        padded.append(
            Grid(
                nominal=_pad_point(grid.nominal, _point_sizes(shape)),
                zones=new_zones,
                chord=chord,
                tree=tree,
                units=_units(grid.units, place, zones, shape, by_slot),
                tap_reference=_longer(grid.tap_reference, shape.regulators, 1.0),
                branches={k: place.branches(grid.branches.get(k), size, zs.n.dtype) for k, size in kinds.items()},
                taps=_taps(grid, shape, ends),
                junctions=_junctions(grid, meeting),
                step_re=_longer(grid.step_re, shape.steps),
                step_im=_longer(grid.step_im, shape.steps),
                step_bank=_longer(grid.step_bank, shape.steps, shape.banks),  # past the last bank: it adds to none
                series_bank=_longer(grid.series_bank, shape.banks),
                node_place=node_place,
                node_volts=_longer(grid.node_volts, shape.nodes + 1, 1.0),
                bus_phases=_pad(
                    place.nodes(grid.bus_phases),
                    [(len(grid.bus_phases),), (3,)],
                    [(max(len(g.bus_phases) for g in grids),), (3,)],
                    shape.nodes,
                ),
                rating_a={
                    k: _pad(a, [(n,) for n in a.shape], [(max(n),) for n in sizes], np.inf)
                    for k, a in grid.rating_a.items()
                    for sizes in [list(zip(*(g.rating_a[k].shape for g in grids), strict=True))]
                },
                source_emf=_pad(grid.source_emf, [old_head], [head]),
                emf_re=_pad(grid.emf_re, [(n,) for n in grid.emf_re.shape], _largest([g.emf_re for g in grids])),
                emf_im=_pad(grid.emf_im, [(n,) for n in grid.emf_im.shape], _largest([g.emf_im for g in grids])),
                base_va=grid.base_va,
                shape=shape,
            )
        )
    return jax.tree.map(lambda *a: jax.device_put(np.stack(a)), *padded)


def _pad(a: Array, old: Sequence[Dims], new: Sequence[Dims], fill: float = 0.0) -> Array:
    """Pads an array each of whose axes is a flattened box: `old` and `new` are the boxes, axis by axis."""
    boxes, wide = [n for box in old for n in box], [n for box in new for n in box]
    out = np.pad(a.reshape(boxes), [(0, w - n) for n, w in zip(boxes, wide, strict=True)], constant_values=fill)
    return out.reshape([int(np.prod(box)) for box in new])


def _longer(a: Array, size: int, fill: float = 0.0) -> Array:
    return _pad(a, [(a.shape[0],)], [(size,)], fill)


def _largest(arrays: list[Array]) -> list[Dims]:
    return [(max(n),) for n in zip(*(a.shape for a in arrays), strict=True)]


def _common_shape(shapes: list[Shape], rows: list[int]) -> Shape:
    """The largest of each size; one row of a zone's nodes stays empty, for the nodes that a feeder lacks."""
    largest = {f.name: max(getattr(s, f.name) for s in shapes) for f in dataclasses.fields(Shape)}
    return Shape(**largest | {"interior": max(rows) + 1 - largest["boundary"]})


def _point_sizes(shape: Shape) -> dict[str, int]:
    sizes = {"load_kw": shape.loads, "load_kvar": shape.loads, "tap": shape.regulators, "capacitor": shape.steps}
    return sizes | dict.fromkeys(("generation_kw", "generation_kvar"), shape.generators) | {"source_pu": shape.sources}


def _pad_point(point: OperatingPoint, sizes: dict[str, int]) -> OperatingPoint:
    def field(name: str, size: int) -> Array:
        a = np.asarray(getattr(point, name))
        return _pad(a, [(n,) for n in a.shape], [*((n,) for n in a.shape[:-1]), (size,)], EMPTY.get(name, 0.0))

    return OperatingPoint(**{name: field(name, size) for name, size in sizes.items()})


def _stack_points(points: Sequence[OperatingPoint]) -> OperatingPoint:
    names = OperatingPoint.__dataclass_fields__
    sizes = {name: max(np.shape(getattr(point, name))[-1] for point in points) for name in names}
    return jax.tree.map(lambda *a: jax.device_put(np.stack(a)), *(_pad_point(point, sizes) for point in points))


def _tier_sizes(grids: list[Grid]) -> tuple[list[int], list[tuple[int, int]]]:
    """Of the common tiers: boundary nodes; above the lowest, zones and members."""
    count = max(len(grid.zones.tiers) for grid in grids)
    boundaries, members = [], []
    for k in range(count):
        # A grid with fewer tiers gets further ones that hand its topmost boundary on.
        boundaries.append(max(grid.zones.tiers[min(k, len(grid.zones.tiers) - 1)].t.shape[1] // 2 for grid in grids))
        if k:
            sizes = [grid.zones.tiers[k].member.shape for grid in grids if k < len(grid.zones.tiers)]
            members.append(tuple(max(n) for n in zip(*sizes, strict=True)))
    return boundaries, members


def _tiers(tiers, old_slots: Dims, slots: Dims, zones: int, boundaries, members) -> tuple[Tier, ...]:
    out = []
    inputs, old_inputs, count = slots, old_slots, zones
    for k, h in enumerate(boundaries):
        if k < len(tiers):
            tier = tiers[k]
        else:
            h_top = old_inputs[1]
            one: Array = np.eye(2 * h_top, dtype=tiers[0].w.dtype)[None]
            index = tiers[0].member.dtype
            old_inputs = (1, *old_inputs)
            none: Array = np.zeros((1, 1), index)
            tier = Tier(z=0 * one, w=one, t=one, member=none, place=none[0])
        old_h = (2, tier.t.shape[1] // 2)
        if k:
            count, width = members[k - 1]
            old_width = tier.member.shape[1]
            if k < len(tiers):
                old_inputs = (old_width, *old_inputs)
            inputs = (width, *inputs)
            place = tier.place // old_width * width + tier.place % old_width
            place = _longer(place, members[k - 2][0] if k > 1 else zones).astype(tier.place.dtype)
            member = _pad(tier.member, [(n,) for n in tier.member.shape], [(count,), (width,)])
        else:
            place, member = tier.place, tier.member
        z = (tier.z.shape[0],)
        out.append(
            Tier(
                z=_pad(tier.z, [z, old_inputs, old_inputs], [(count,), inputs, inputs]),
                w=_pad(tier.w, [z, old_inputs, old_h], [(count,), inputs, (2, h)]),
                t=_pad(tier.t, [z, old_h, old_inputs], [(count,), (2, h), inputs]),
                member=member,
                place=place,
            )
        )
        inputs, old_inputs = (2, h), old_h
    return tuple(out)


def _trees(grids: list[Grid], slots: int) -> list[Tree | None]:
    """The trees in one shape, if all grids have one; only `counts` tells what is padding."""
    trees = [grid.tree for grid in grids if grid.tree is not None]
    if len(trees) < len(grids):
        return [None] * len(grids)
    largest = {
        f.name: _largest([getattr(t, f.name) for t in trees]) for f in dataclasses.fields(Tree) if f.name != "heads"
    }
    heads, out = max(t.heads for t in trees), []
    for grid, tree in zip(grids, trees, strict=True):
        own = grid.shape.slots
        tree = dataclasses.replace(tree, unit_slot=tree.unit_slot // own * slots + tree.unit_slot % own)
        padded = {
            k: _pad(getattr(tree, k), [(n,) for n in getattr(tree, k).shape], size) for k, size in largest.items()
        }
        out.append(Tree(**padded, heads=heads))
    return out


def _units(units: Units, place: _Padding, zones: int, shape: Shape, by_slot) -> Units:
    def put(a: Array, fill: float = 0.0) -> Array:
        tail = a.shape[2:]
        old, new = [(n,) for n in a.shape], [(zones,), (shape.slots,), *((n,) for n in tail)]
        return _pad(a, old, new, fill).astype(a.dtype)

    return Units(
        laws=Laws(**{k: put(getattr(units.laws, k), IMPEDANCE[k]) for k in Laws.__dataclass_fields__}),
        device=put(place.devices(units.device), shape.devices + shape.banks + shape.regulators),
        share=put(units.share),
        volts=put(units.volts, 1.0),
        nodes=put(place.nodes(units.nodes), shape.nodes),
        emf=by_slot(units.emf),
        emf_source=put(units.emf_source),
    )


def _branch_sizes(grids: list[Grid], kind: str) -> Dims:
    return tuple(n for (n,) in _largest([grid.branches[kind].nodes for grid in grids if kind in grid.branches]))


def _taps(grid: Grid, shape: Shape, size: Dims) -> Taps:
    """A grid's, of as many transformers, terminals and conductors."""
    taps = grid.taps
    regulator = np.where(taps.regulator >= grid.shape.regulators, shape.regulators, taps.regulator)
    by_end = [(n,) for n in regulator.shape], [(n,) for n in size[:2]]
    by_row = [(n,) for n in taps.ground_re.shape], [(n,) for n in size]
    return Taps(
        regulator=_pad(regulator.astype(taps.regulator.dtype), *by_end, shape.regulators),
        tap=_pad(taps.tap, *by_end, 1.0),
        ground_re=_pad(taps.ground_re, *by_row),
        ground_im=_pad(taps.ground_im, *by_row),
    )


def _meeting(grids: list[Grid], kinds: list[str]) -> Junctions | None:
    """Arrays of the shapes that all grids' junctions have in common; None where a grid has none."""
    every = [grid.junctions for grid in grids if grid.junctions is not None]
    if len(every) < len(grids):
        return None

    def common(arrays: list[Array]) -> Array:
        return np.zeros([n for (n,) in _largest(arrays)], arrays[0].dtype)

    return Junctions(
        element={k: common([j.element[k] for j in every if k in j.element]) for k in kinds},
        here={k: common([j.here[k] for j in every if k in j.here]) for k in kinds},
        **{k: common([getattr(j, k) for j in every]) for k in ("unit", "amps", "correction")},
    )


def _junctions(grid: Grid, common: Junctions | None) -> Junctions | None:
    """A grid's, where what is missing counts for nothing."""
    if common is None or grid.junctions is None:
        return None

    def wide(a: Array, like: Array) -> Array:
        return _pad(a, [(n,) for n in a.shape], [(n,) for n in like.shape])

    own = grid.junctions
    return Junctions(
        element={k: wide(own.element[k], a) if k in own.element else a for k, a in common.element.items()},
        here={k: wide(own.here[k], a) if k in own.here else a for k, a in common.here.items()},
        **{k: wide(getattr(own, k), getattr(common, k)) for k in ("unit", "amps", "correction")},
    )


class _Padding:
    """How numbers of nodes and devices of one grid change in the common shape."""

    def __init__(self, old: Shape, new: Shape):
        self.old, self.new = old, new

    def nodes(self, a: Array) -> Array:
        return np.where(a >= self.old.nodes, self.new.nodes, a).astype(a.dtype)

    def devices(self, a: Array) -> Array:
        out, start, place = np.array(a), 0, 0
        for name in ("loads", "generators", "banks", "regulators"):
            count = getattr(self.old, name)
            here = (a >= start) & (a < start + count)
            out[here] += place - start
            start, place = start + count, place + getattr(self.new, name)
        out[a >= start] = place
        return out

    def branches(self, branches: Branches | None, size: Dims, dtype: np.dtype) -> Branches:
        count, terminals, width = size
        ends = terminals * width
        if branches is None:
            zero: Array = np.zeros((count, ends, ends), dtype)
            ground: Array = np.full(size, self.new.nodes, np.int32)
            return Branches(zero, zero, ground)
        n, t, w = branches.nodes.shape
        old, new = [(n,), (t, w), (t, w)], [(count,), (terminals, width), (terminals, width)]
        nodes = _pad(self.nodes(branches.nodes), [(n,), (t,), (w,)], [(count,), (terminals,), (width,)], self.new.nodes)
        return Branches(_pad(branches.y_re, old, new), _pad(branches.y_im, old, new), nodes)
