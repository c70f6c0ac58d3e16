"""What photovoltaic systems and batteries deliver at nominal voltage.

The formulas serve both the host and, as arrays, `gridjax.control.photovoltaic`.

Photovoltaics, as OpenDSS's PVSystem (EPRI, "OpenDSS PVSystem and InvControl element models", 2011):

    Pdc = irradiance Pmpp P(T)
    P   = min(eff(Pdc/kVA) Pdc, %Pmpp/100 Pmpp)  while the inverter is on, 0 while it is off
    Q   = kvar within [-kvarMaxAbs, kvarMax] and the kVA, also while it is off

and, where P^2 + Q^2 > kVA^2,

    Q priority: P = sqrt(kVA^2 - Q^2)
    P priority: Q = sign(Q) sqrt(kVA^2 - P^2);  P = kVA, Q = 0 where P > kVA

The inverter is on where Pdc reaches the cut-out: an inverter starts a snapshot in operation, and
the cut-in, taken to be no lower, matters only to one that went off before. Curves are linear
between their points and go on at their ends with the slope there.

Batteries: a record's `kw` and `kvar` are the terminal's; see `storage_power`.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from gridjax.feeder import Matrix, PVSystem, Storage
from gridjax.namespace import Array, namespace


def curve_value(curve: Matrix | None, x: float) -> float:
    """A curve ((x, ...), (y, ...)) at x, extrapolated along its end segments; 1 for no curve."""
    if curve is None:
        return 1.0
    xs, ys = (np.asarray(row, dtype=np.float64) for row in curve)
    return float(curve_values(xs, ys, np.asarray(x, np.float64))) if len(xs) > 1 else float(ys[0])


def curve_values(xs: Array, ys: Array, x: Array) -> Array:
    """Curves through (xs, ys), (..., k) with k > 1, each at its x (...), extrapolated along their end segments."""
    xp = namespace(xs, ys, x)
    i = xp.clip(xp.sum(xs <= x[..., None], axis=-1), 1, xs.shape[-1] - 1)

    def at(a, i):
        return xp.take_along_axis(a, i[..., None], axis=-1)[..., 0]

    x0, x1, y0, y1 = at(xs, i - 1), at(xs, i), at(ys, i - 1), at(ys, i)
    return y0 + (x - x0) * (y1 - y0) / (x1 - x0)


def inverter_kw(panel_kw: Array, efficiency: Array, most_kw: Array, on: Array) -> Array:
    """What an inverter that is `on` makes of the panels' power."""
    xp = namespace(panel_kw, efficiency, most_kw, on)
    return xp.where(on, xp.minimum(efficiency * panel_kw, most_kw), 0.0)


def pv_power(pv: PVSystem) -> tuple[float, float]:
    """What the inverter injects at nominal voltage.

    Args:
      pv: the array and its inverter; `pv.kvar` is asked of it, positive when injected.

    Returns:
      `(kw, kvar)`, over all phases, positive into the grid.

    Raises:
      ValueError: a rating or a curve makes no sense; the message names the system and the cure.
    """
    _check_pv(pv)
    panel_kw = pv.irradiance * pv.pmpp_kw * curve_value(pv.power_curve, pv.temperature_c)
    efficiency = curve_value(pv.efficiency_curve, panel_kw / pv.kva)
    on = panel_kw >= pv.cut_out_percent / 100 * pv.kva
    kw = float(inverter_kw(panel_kw, efficiency, pv.pmpp_percent / 100 * pv.pmpp_kw, on))
    injected = pv.kva if pv.kvar_max is None else pv.kvar_max
    absorbed = injected if pv.kvar_max_abs is None else pv.kvar_max_abs
    return _within_rating(kw, min(max(pv.kvar, -absorbed), injected), pv.kva, pv.watt_priority)


def _within_rating(kw: float, kvar: float, kva: float, watt_priority: bool) -> tuple[float, float]:
    """Backs off P (or, with `watt_priority`, Q) to bring the apparent power down to `kva`."""
    if math.hypot(kw, kvar) <= kva:
        return kw, kvar
    if not watt_priority:
        kvar = math.copysign(min(abs(kvar), kva), kvar)
        return math.copysign(math.sqrt(kva**2 - kvar**2), kw) if kw else 0.0, kvar
    if abs(kw) > kva:
        return math.copysign(kva, kw), 0.0
    return kw, math.copysign(math.sqrt(kva**2 - kw**2), kvar)


def _check_pv(pv: PVSystem) -> None:
    what = f"PVSystem {pv.name!r}"
    if pv.kva <= 0 or pv.pmpp_kw < 0:
        raise ValueError(f"{what}: needs kva > 0 and pmpp_kw >= 0")
    if any(limit is not None and limit < 0 for limit in (pv.kvar_max, pv.kvar_max_abs)):
        raise ValueError(f"{what}: kvar_max and kvar_max_abs are magnitudes; drop the sign")
    for curve, name in ((pv.power_curve, "power_curve"), (pv.efficiency_curve, "efficiency_curve")):
        if curve is None:
            continue
        xs, *ys = curve
        rising = all(a < b for a, b in itertools.pairwise(xs))
        if not xs or len(ys) != 1 or len(ys[0]) != len(xs) or not rising:
            raise ValueError(f"{what}: {name} must be ((x, ...), (y, ...)) with rising x")


def storage_power(storage: Storage) -> tuple[float, float]:
    """What a battery injects at nominal voltage: its recorded terminal power, within its ratings.

    The record's `kw` and `kvar` are measured at the terminal already: charging, discharging and
    idling losses lie behind it (OpenDSS takes the losses of a charging or discharging battery out
    of its energy, not out of its terminal power). An idling battery draws `idling_kw(storage)`; a
    record of one has that as its `kw`.

    Returns:
      `(kw, kvar)`, over all phases, positive into the grid: kw within +-`kw_rated`, and then, where
      the apparent power exceeds `kva`, kw backed off in favour of kvar, as OpenDSS does by default.

    Raises:
      ValueError: a rating is not positive.
    """
    if storage.kva <= 0 or storage.kw_rated <= 0:
        raise ValueError(f"Storage {storage.name!r}: needs kva > 0 and kw_rated > 0")
    kw = min(max(storage.kw, -storage.kw_rated), storage.kw_rated)
    return _within_rating(kw, storage.kvar, storage.kva, watt_priority=False)


def idling_kw(storage: Storage) -> float:
    """The injection of an idling battery, kW: minus its losses, for an inverter without losses."""
    return -storage.idling_percent / 100 * storage.kw_rated
