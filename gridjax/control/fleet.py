"""Photovoltaic systems and batteries at the loads of any feeder, drawn from a seed, for studies.

Sizes spread by a factor of three, `uniform(0.5, 1.5)`, and add up to what is asked for. A unit stands where a load
does: the same terminal, phases, connection and rated voltage. Where more are asked for than there are loads, the choice
starts anew, so that some loads get two.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from gridjax.feeder import Feeder, Load, PVSystem, Storage

# Constant power at any voltage that is met, as of a modern inverter: the curves say what happens beyond the limits.
_LEAST_PU, _MOST_PU = 0.5, 1.5


def add_fleet(
    feeder: Feeder,
    seed: int,
    *,
    count: int | None = None,
    penetration: float = 1.0,
    rating: float = 1.1,
    batteries: int = 0,
    hours: float = 2.0,
    at: Collection[str] | None = None,
) -> Feeder:
    """The feeder with photovoltaic systems `pv0`, `pv1`, ... and batteries `battery0`, ... added to what it has.

    Args:
      feeder: any feeder with loads.
      seed: of the choice and of the sizes; the same seed gives the same fleet.
      count: photovoltaic systems; None is one for every other load.
      penetration: their peak power together over the loads' rated power together. Batteries have half as much power
        each, on average, as photovoltaic systems.
      rating: kVA of an inverter over its peak kW: with 1.1 it keeps sqrt(1.1^2 - 1)/1.1 = 0.42 for reactive power at
        full sun.
      batteries: how many, at loads of their own choice.
      hours: their energy over their power.
      at: names of the loads to choose from; None is all that consume.

    Returns:
      A new feeder; its systems run at any irradiance (no cut-in), at constant power between 0.5 and 1.5 pu.

    Raises:
      ValueError: no loads to choose from, or names that are no loads, or a count, penetration or rating that makes no
        sense.
    """
    names = {load.name for load in feeder.loads}
    if at is not None and not set(at) <= names:
        raise ValueError(f"{feeder.name} has no loads named {sorted(set(at) - names)}")
    places = [load for load in feeder.loads if (load.kw > 0 if at is None else load.name in at)]
    if not places:
        raise ValueError(f"{feeder.name} has no loads to choose from: give their names in `at`")
    count = max(1, round(0.5 * len(places))) if count is None else count
    if count < 0 or batteries < 0 or penetration <= 0 or rating < 1 or hours <= 0:
        raise ValueError(
            "needs counts that are not negative, positive penetration and hours, and a rating of at least 1"
        )
    rng = np.random.default_rng(seed)
    total = penetration * sum(load.kw for load in feeder.loads)
    chosen, peak = _draw(rng, places, count, total)
    systems = [_pv(f"pv{i}", load, float(kw), rating) for i, (load, kw) in enumerate(zip(chosen, peak, strict=True))]
    chosen, power = _draw(rng, places, batteries, 0.5 * total * batteries / max(count, 1))
    storages = [
        _battery(f"battery{i}", load, float(kw), rating, hours)
        for i, (load, kw) in enumerate(zip(chosen, power, strict=True))
    ]
    taken = {x.name for x in (*feeder.pv_systems, *feeder.storages)} & {x.name for x in (*systems, *storages)}
    if taken:
        raise ValueError(f"{feeder.name} has units named {sorted(taken)} already: rename them")
    return feeder.replace(pv_systems=(*feeder.pv_systems, *systems), storages=(*feeder.storages, *storages))


def _draw(rng: np.random.Generator, places: list[Load], count: int, total: float) -> tuple[list[Load], np.ndarray]:
    """Places in the feeder's order, and sizes that add up to `total`."""
    if not count:
        return [], np.zeros(0)
    rounds, rest = divmod(count, len(places))
    chosen = np.sort(rng.choice(len(places), rest, replace=False)) if rest else np.zeros(0, int)
    chosen = np.concatenate([*[np.arange(len(places))] * rounds, chosen]).astype(int)
    size = rng.uniform(0.5, 1.5, count)
    return [places[i] for i in chosen], total * size / size.sum()


def _pv(name: str, load: Load, peak_kw: float, rating: float) -> PVSystem:
    return PVSystem(
        name, load.bus, load.phases, load.connection, load.kv, rating * peak_kw, peak_kw,
        cut_in_percent=0.0, cut_out_percent=0.0, watt_priority=True, vmin_pu=_LEAST_PU, vmax_pu=_MOST_PU,
    )  # fmt: skip


def _battery(name: str, load: Load, kw: float, rating: float, hours: float) -> Storage:
    return Storage(
        name, load.bus, load.phases, load.connection, load.kv, rating * kw, kw, hours * kw, 0.5 * hours * kw,
        vmin_pu=_LEAST_PU, vmax_pu=_MOST_PU,
    )  # fmt: skip
