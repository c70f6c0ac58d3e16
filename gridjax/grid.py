"""A compiled feeder and what is asked of it, as pytrees of arrays. How they are made: `gridjax.assembly`."""

from __future__ import annotations

import flax.struct
import jax

from gridjax.branches import Branches, Taps
from gridjax.junctions import Junctions
from gridjax.layout import Shape
from gridjax.powerflow.injections import Laws
from gridjax.tree import Tree


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
class Tier:
    """Operators of a tier's zones (see `gridjax.assembly`), real, (zones, rows, columns).

    Above the lowest tier, `member` (zones, members) are the zones below, and `place` (zones below,) where they are in
    the flattened members.
    """

    z: jax.Array
    w: jax.Array
    t: jax.Array
    member: jax.Array
    place: jax.Array


@flax.struct.dataclass
class Chord:
    """The circuit with the slots' currents linearised at the nominal point, in float32: `x = K y + r`.

    Sweeps on these tiers from the inputs r are those of a chord method; they only prepare the exact ones.
    """

    tiers: tuple[Tier, ...]
    by_re: jax.Array  # K, (zones, 2 slots), by the real and the imaginary part of the voltage
    by_im: jax.Array
    u: jax.Array  # (zones, 2 slots) at the nominal point


@flax.struct.dataclass
class Zones:
    """The tiers from the lowest up, how its nodes follow from it, and the no-load solution."""

    tiers: tuple[Tier, ...]
    n: jax.Array  # (zones, 2 (interior + boundary), 2 slots)
    n_boundary: jax.Array  # (zones, 2 (interior + boundary), 2 boundary)
    u_ref: jax.Array  # (zones, 2 slots)
    v_ref: jax.Array  # (zones, 2 (interior + boundary))
    head_y: jax.Array  # (2 boundary, 2 boundary) the topmost zone's admittance, seen by the first source's EMF
    head_ref: jax.Array  # (2 boundary,) that EMF in the no-load solution
    head_form: jax.Array  # (boundary, boundary) boundary coordinates from the voltages of its nodes


@flax.struct.dataclass
class Units:
    """What the zones' slots hold: (zones, slots) arrays; `device` numbers loads, generators, banks, regulators.

    Slots of taps and empty ones have ground nodes; empty ones have no device, which is one past the last.
    """

    laws: Laws
    device: jax.Array
    share: jax.Array
    volts: jax.Array
    nodes: jax.Array  # (zones, slots, 2)
    emf: jax.Array  # (zones, 2 slots) current of a further source at 1 pu, real then imaginary
    emf_source: jax.Array  # (zones, slots) which source


@flax.struct.dataclass
class Grid:
    """A compiled feeder: a pytree of arrays that `solve` and the results need, and nothing else.

    Names and tables stay on the host, in the `Feeder`; order is theirs. `nominal` is the operating point as the
    feeder gives it. `tree` serves the processor's own kernel; where it is None, as in a grid assembled from traced
    parameters, the tiers serve all devices.
    """

    nominal: OperatingPoint
    zones: Zones
    chord: Chord
    tree: Tree | None
    units: Units
    tap_reference: jax.Array
    branches: dict[str, Branches]
    taps: Taps  # of transformers
    junctions: Junctions | None  # in float32
    step_re: jax.Array
    step_im: jax.Array
    step_bank: jax.Array
    series_bank: jax.Array  # (banks,) 1.0 where a bank stands between two buses
    node_place: jax.Array
    node_volts: jax.Array
    bus_phases: jax.Array
    rating_a: dict[str, jax.Array]
    source_emf: jax.Array  # (2 boundary,) the first source's EMF at 1 pu in the topmost zone's form
    emf_re: jax.Array  # (sources, conductors) all sources' EMF at 1 pu
    emf_im: jax.Array
    base_va: jax.Array
    shape: Shape = flax.struct.field(pytree_node=False)
