"""Microgrids on any feeder with one source, sized from the feeder's own load by a rule.

With P the loads' rated power together and S their rated apparent power, the plant is

    grid-forming unit   at the source's bus, in its place: S; a battery inverter with a store of 6 h at S, 60 % full,
                        or a synchronous machine. Its EMF of 1 pu stands behind 0.5 % + j 5 % of its rating,
                        which is its voltage droop; a machine's negative sequence is 15 %
    diesels             two of 0.4 P (rated kVA: 1.25 times that), at the three-phase buses of the primary voltage
                        nearest to the largest loads
    photovoltaics       at the larger half of the loads, in proportion to them, 0.8 P together
    batteries           an eighth as many as loads, at some of these, drawn from a seed; each of half a photovoltaic
                        system's average power, and of 2 h (`gridjax.control.fleet`)

A feeder that has generators, photovoltaics or batteries keeps its own instead: generators are the diesels. All run at
constant power between 0.5 and 1.5 pu, so that they give what is asked of them.

Constants of the machines are choices within what is usual: a grid-forming inverter's R = 3 %, virtual H = 2 s and no
lag; machines' R = 5 %, H = 1.5 s and a governor of 0.3 s; followers by IEEE 1547-2018 (dead band 36 mHz, 5 %, 5 s).
Loads take 1.5 % more for 1 % of frequency (Kundur 1994, 11.1.1: 1 to 2). Limits: 58.8 to 61.2 Hz of 60 is the band of
continuous operation (IEEE 1547-2018, table 19; EN 50160 has the same 2 % for islands), below 56.5 and above 62.0 Hz for
0.16 s everything trips (table 18), and the relay's stages lie between, at 58.7, 58.5 and 58.3 Hz for 0.2 s, in the
manner of utilities' schemes under NERC PRC-006. The grid-forming unit bears 1.5 of its rating for 2 s and 1.1 for good.
What Kundur, EN 50160, PRC-006 and (for fuel) Skarstein and Uhlen say is from memory and was not checked against them.

Blocks in the order in which they are shed hold 15, 20, 25 and 40 % of P, those farthest from the source first; the last
one has no relay. Prices are choices: a kWh not served costs 2, 4, 8 and 16, a litre of fuel 1.2, a kWh curtailed 0.05,
one less in store 0.25, and a blackout 8 h of the rated load not served.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from gridjax.assembly import compile
from gridjax.control.fleet import add_fleet
from gridjax.control.frequency import Machines, Relay, followers
from gridjax.control.standard import CONTINUOUS_HZ, NOMINAL_HZ, TRIP
from gridjax.control.storage import Storages, storages
from gridjax.days import at_full_sun, distances_km, region, shapes_each
from gridjax.env.der_tasks import HIGHEST_TAP
from gridjax.env.disturbances import Disturbances
from gridjax.env.island import Island, Limits
from gridjax.env.microgrid import Dispatch, Microgrid, MicrogridParams, Prices
from gridjax.env.terminals import neighbours, places
from gridjax.feeder import Feeder, Generator, Load, Source, Storage, split_terminal
from gridjax.profiles import Profiles, expand_each

BLOCKS = (("deferrable", 0.15, 2.0), ("ordinary", 0.20, 4.0), ("important", 0.25, 8.0), ("critical", 0.40, 16.0))
STAGES_HZ = (58.7, 58.5, 58.3, -math.inf)
INNER_S = (0.1,) * 10 + (0.5,) * 6 + (1.0,) * 6  # 10 s
STORE_H, STORE_FULL, DIESEL_SHARE, PV_SHARE = 6.0, 0.6, 0.4, 0.8
BLACKOUT_H = 8.0
LITRES_KWH, LITRES_RATED_H = 0.246, 0.08145  # Skarstein and Uhlen, Wind Engineering 13(2), 1989
FORMING = ("battery", "machine")


def microgrid(
    feeder: Feeder,
    key: jax.Array,
    *,
    forming: str = "battery",
    days: int = 100,
    hours: float = 1.0,
    diesels: int = 2,
    chances: tuple[float, float, float] = (0.1, 0.02, 0.1),
    seed: int = 0,
) -> tuple[Microgrid, MicrogridParams]:
    """The task on a feeder, whose regulators rest where they are, at most two steps above neutral.

    Args:
      feeder: with one three-phase source, whose place the grid-forming unit takes.
      key: of the days.
      forming: "battery" or "machine": what the grid-forming unit is.
      days: how many are drawn, evenly over the year; episodes are drawn from them.
      hours: length of a step, a whole number of which make a day.
      diesels: how many; the feeder's generators count instead where it has some.
      chances: in each step, of a load step, the loss of a source, a cloud.
      seed: of who gets batteries, and of their sizes.

    Returns:
      The environment and its parameters.

    Raises:
      ValueError: numbers that make no sense, or a feeder that cannot be an island; the message names the cure.
    """
    steps = round(24 / hours)
    if days < 1 or steps < 2 or abs(steps * hours - 24) > 1e-9 or hours * 3600 <= sum(INNER_S):
        raise ValueError(f"{days} days of steps of {hours:g} h: take at least one day, and steps that divide 24 h")
    if min(chances) < 0 or sum(chances) > 1:
        raise ValueError(f"chances {chances}: none may be negative, and together they are at most 1")
    feeder = island_feeder(feeder, forming=forming, diesels=diesels, seed=seed)
    grid = compile(feeder)
    nominal = dataclasses.replace(grid.nominal, tap=jnp.minimum(grid.nominal.tap, HIGHEST_TAP))
    grid = dataclasses.replace(grid, nominal=nominal)
    block = _blocks(feeder)
    island = _island(feeder, forming, block)
    devices = [*feeder.generators, *feeder.pv_systems, *feeder.storages]
    devices += [max((x for x, b in zip(feeder.loads, block, strict=True) if b == k), key=_kw) for k in np.unique(block)]
    terminals = [device.bus for device in devices]
    prices = _prices(feeder)
    env = Microgrid(
        horizon=steps, failure_penalty=-4 * float(prices.blackout), nodes=feeder.node_names,
        diesels=tuple(x.name for x in feeder.generators), inverters=tuple(x.name for x in feeder.pv_systems),
        batteries=tuple(x.name for x in feeder.storages), blocks=tuple(name for name, *_ in BLOCKS),
    )  # fmt: skip
    scale = feeder.frequency_hz / NOMINAL_HZ
    params = MicrogridParams(
        grid=grid, island=island, days=_days(feeder, grid, key, days, steps), dispatch=_dispatch(feeder, island),
        prices=prices, disturbances=_disturbances(chances), low=jnp.full(len(env.nodes), 0.95),
        high=jnp.full(len(env.nodes), 1.05), band_hz=_number(scale * (CONTINUOUS_HZ[1] - NOMINAL_HZ)),
        nominal_hz=_number(feeder.frequency_hz), place=jnp.asarray(places(feeder, terminals)),
        neighbour=jnp.asarray(neighbours(feeder, terminals)), hours=_number(hours),
    )  # fmt: skip
    return env, params


def island_feeder(feeder: Feeder, *, forming: str = "battery", diesels: int = 2, seed: int = 0) -> Feeder:
    """The feeder with its source replaced by a grid-forming unit, and with diesels, photovoltaics and batteries.

    Raises:
      ValueError: not exactly one three-phase source, no loads, generators of another model than constant power, or an
        unknown kind of grid-forming unit.
    """
    if forming not in FORMING:
        raise ValueError(f"forming {forming!r}: choose one of {FORMING}")
    if len(feeder.sources) != 1 or len(split_terminal(feeder.sources[0].bus)[1]) != 3:
        raise ValueError(f"{feeder.name}: an island needs one source with three phases, whose place its unit takes")
    if not [x for x in feeder.loads if x.kw > 0]:
        raise ValueError(f"{feeder.name}: an island needs loads that consume")
    if diesels < 0:
        raise ValueError(f"{diesels} diesels: give a number that is not negative")
    own = (*feeder.generators, *feeder.pv_systems, *feeder.storages)
    for x in own:
        if x.model != 1:
            raise ValueError(f"{x.name}: sources of an island give constant power: set its model to 1")
    wide = {"vmin_pu": 0.5, "vmax_pu": 1.5}
    feeder = feeder.replace(
        generators=tuple(dataclasses.replace(x, **wide) for x in feeder.generators) or _diesels(feeder, diesels),
        pv_systems=tuple(dataclasses.replace(x, **wide) for x in feeder.pv_systems),
        storages=tuple(dataclasses.replace(x, **wide) for x in feeder.storages),
        sources=(_forming_source(feeder, forming),),
    )
    return _with_fleet(feeder, seed)


def _with_fleet(feeder: Feeder, seed: int) -> Feeder:
    """With photovoltaics and batteries where the feeder has none."""
    consuming = sorted((x for x in feeder.loads if x.kw > 0), key=_kw, reverse=True)
    sites = {x.name: x.kw for x in consuming[: max(1, len(consuming) // 2)]}
    batteries = 0 if feeder.storages else max(1, len(feeder.loads) // 8)
    count = 0 if feeder.pv_systems else len(sites)
    if not (count or batteries):
        return feeder
    fleet = add_fleet(feeder, seed, count=len(sites), batteries=batteries, penetration=PV_SHARE, at=sites)
    if not count:
        return fleet.replace(pv_systems=feeder.pv_systems)
    sizes = [x.kw for x in feeder.loads if x.name in sites]  # one system each, in the feeder's order
    factor = PV_SHARE * sum(x.kw for x in feeder.loads) / sum(sizes)
    systems = [
        dataclasses.replace(pv, pmpp_kw=factor * kw, kva=1.1 * factor * kw)
        for pv, kw in zip(fleet.pv_systems, sizes, strict=True)
    ]
    return fleet.replace(pv_systems=tuple(systems))


def _number(value: float) -> jax.Array:
    return jnp.asarray(value, float)


def _kw(load: Load) -> float:
    return load.kw


def rated_kva(feeder: Feeder) -> float:
    """S: the loads' rated apparent power together."""
    return abs(sum(complex(x.kw, x.kvar) for x in feeder.loads))


def _forming_source(feeder: Feeder, forming: str) -> Source:
    source = feeder.sources[0]
    ohm = source.base_kv**2 / (rated_kva(feeder) / 1e3)
    return dataclasses.replace(
        source, name="forming", pu=1.0, r1_ohm=0.005 * ohm, x1_ohm=0.05 * ohm, r0_ohm=0.005 * ohm, x0_ohm=0.05 * ohm,
        r2_ohm=0.005 * ohm, x2_ohm=(0.05 if forming == "battery" else 0.15) * ohm,
    )  # fmt: skip


def _diesels(feeder: Feeder, count: int) -> tuple[Generator, ...]:
    """At the three-phase buses of the primary voltage (that of most of them) nearest to the largest loads."""
    kw = DIESEL_SHARE * sum(x.kw for x in feeder.loads)
    root = split_terminal(feeder.sources[0].bus)[0]
    buses = [b for b in feeder.buses if {1, 2, 3} <= set(b.nodes) and b.name != root]
    levels = [b.base_kv for b in buses]
    primary = max(levels, key=levels.count, default=0.0)
    buses = [b for b in buses if b.base_kv == primary]
    if len(buses) < count:
        raise ValueError(f"{feeder.name}: {len(buses)} three-phase buses for {count} diesels: ask for fewer")
    loads = [split_terminal(x.bus)[0] for x in sorted(feeder.loads, key=_kw, reverse=True)]
    far = distances_km(feeder, loads + [b.name for b in buses])[: len(loads), len(loads) :]
    sites = []
    for row in (*far, far.sum(axis=0)):
        free = [k for k in np.argsort(row, kind="stable") if k not in sites]
        sites += [free[0]] if len(sites) < count else []
    kv = math.sqrt(3) * primary
    return tuple(
        Generator(
            f"diesel{i}", f"{buses[k].name}.1.2.3", 3, "delta", kv, kw, 0.0, vmin_pu=0.5, vmax_pu=1.5, kva=1.25 * kw
        )
        for i, k in enumerate(sites)
    )


def _blocks(feeder: Feeder) -> np.ndarray:
    """The block of each load: those farthest from the source first, up to each block's share."""
    root = split_terminal(feeder.sources[0].bus)[0]
    far = distances_km(feeder, [root, *(split_terminal(x.bus)[0] for x in feeder.loads)])[0, 1:]
    order = np.argsort(-far, kind="stable")
    kw = np.maximum([x.kw for x in feeder.loads], 0.0)[order]
    middle = (np.cumsum(kw) - kw / 2) / kw.sum()
    edges = np.cumsum([share for _, share, _ in BLOCKS])[:-1]
    out = np.empty(len(order), int)
    out[order] = np.searchsorted(edges, middle)
    if len(np.unique(out)) < len(BLOCKS):
        raise ValueError(f"{feeder.name} has too few loads to make blocks {', '.join(name for name, *_ in BLOCKS)} of")
    return out


def _island(feeder: Feeder, forming: str, block: np.ndarray) -> Island:
    hz, s = feeder.frequency_hz, rated_kva(feeder)
    rated = [x.kw for x in feeder.generators]
    kva = [x.kva or 1.25 * x.kw for x in feeder.generators]
    inverter, d = forming == "battery", len(rated)

    def column(first, rest):
        return jnp.asarray([first, *rest], float)

    machines = Machines(
        kva=column(s, kva), kw_low=column(-s if inverter else 0.0, [0.0] * d), kw_high=column(s, rated),
        inertia_s=column(2.0 if inverter else 1.5, [1.5] * d), droop=column(0.03 if inverter else 0.05, [0.05] * d),
        governor_s=column(0.0 if inverter else 0.3, [0.3] * d), damping=column(0.0, [0.0] * d),
    )  # fmt: skip
    batteries = storages(feeder, watt_priority=True, throughput_cost=0.02)
    trip = TRIP["III"]
    low, high = (f / NOMINAL_HZ - 1 for f in (trip.under2_hz, trip.over2_hz))
    follow_kw = jnp.asarray([*(x.pmpp_kw for x in feeder.pv_systems), *(x.kw_rated for x in feeder.storages)], float)
    ratings = [*kva, *(x.kva for x in (*feeder.pv_systems, *feeder.storages))]
    return Island(
        machines=machines, followers=followers(follow_kw, hz), batteries=batteries,
        store=_store(feeder, s) if inverter else None, kva=jnp.asarray(ratings, float),
        relay=Relay(jnp.asarray([f / NOMINAL_HZ - 1 for f in STAGES_HZ]), _number(0.2)),
        block=jnp.asarray(block), load_slope=_number(1.5),
        limits=Limits(*(_number(x) for x in (low, high, trip.under2_hz_s, 1.5, 2.0, 1.1))),
        seconds=jnp.asarray(INNER_S, float), cloud_s=_number(8.0),
    )  # fmt: skip


def _store(feeder: Feeder, s: float) -> Storages:
    """The grid-forming unit's own store, which gives twice the rating for the moments that the limits allow."""
    bus = feeder.sources[0].bus
    record = Storage(
        "forming", bus, 3, "wye", feeder.sources[0].base_kv, 2 * s, 2 * s, STORE_H * s, STORE_FULL * STORE_H * s,
        reserve_percent=10.0, charge_efficiency_percent=95.0, discharge_efficiency_percent=95.0, idling_percent=0.1,
    )  # fmt: skip
    return storages(feeder.replace(storages=(record,)), watt_priority=True, throughput_cost=0.02)


def _dispatch(feeder: Feeder, island: Island) -> Dispatch:
    kw = sum(x.kw for x in feeder.loads)
    kvar = sum(x.kvar for x in feeder.loads) - sum(
        k for bank in feeder.capacitors for k, closed in zip(bank.kvar, bank.closed, strict=True) if closed
    )
    rating = island.machines.kva
    share = rating if island.store is None else rating.at[0].set(0.0)
    gain = 0.0 if island.store is None else rated_kva(feeder)
    ratio = min(max(kvar / kw, 0.0), 0.7)  # so much is left beside the rated power at 1.25 kVA for a kW
    return Dispatch(share, _number(gain), _number(STORE_FULL), _number(ratio))


def _prices(feeder: Feeder) -> Prices:
    kw = sum(x.kw for x in feeder.loads)
    unserved = jnp.asarray([price for *_, price in BLOCKS], float)
    blackout = BLACKOUT_H * kw * sum(share * price for _, share, price in BLOCKS)
    return Prices(
        litre=_number(1.2), litres_kwh=_number(LITRES_KWH), litres_rated_h=_number(LITRES_RATED_H), unserved=unserved,
        curtailed=_number(0.05), stored=_number(0.25), blackout=_number(blackout),
    )  # fmt: skip


def _disturbances(chances: tuple[float, float, float]) -> Disturbances:
    return Disturbances(jnp.asarray(chances, float), *(_number(x) for x in (0.5, 0.3, 0.8, 4.0)))


def _days(feeder: Feeder, grid, key: jax.Array, days: int, steps: int) -> Profiles:
    """Profiles from midnight to midnight, (days, steps, ...)."""
    place, sun = region(feeder), at_full_sun(feeder, grid.nominal)
    numbers = jnp.asarray(np.linspace(0, 365, days, endpoint=False).astype(np.int32))
    return expand_each(sun, shapes_each(key, place, numbers, steps))
