"""What photovoltaic systems can deliver, from irradiance and temperature, as arrays under jit, vmap and grad.

With G the irradiance in kW/m^2, T the panels' temperature, as OpenDSS's PVSystem (see `gridjax.generation`):

    Pdc = G Pmpp P(T),   available = min(eff(Pdc/kVA) Pdc, %Pmpp/100 Pmpp) while the inverter is on, 0 while it is off

It goes on where Pdc reaches the cut-in, and off where it falls below the cut-out. The apparent-power limit, which
depends on what reactive power is asked for, comes afterwards (`gridjax.control.inverters`).
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.feeder import Feeder, Matrix
from gridjax.generation import curve_values, inverter_kw
from gridjax.grid import OperatingPoint


@flax.struct.dataclass
class Panels:
    """The m photovoltaic systems of a feeder, in the order of its table.

    Attributes:
      row: (m,) their entries in `OperatingPoint.generation_kw`.
      kva, pmpp_kw, most_kw: (m,) rating, power of the panels at 1 kW/m^2 and 25 degrees, largest power.
      cut_in_kw, cut_out_kw: (m,) panel power at which an inverter goes on and off.
      temperature_c, temperature_factor: (m, k) the factor on the panels' power by temperature.
      loading, efficiency: (m, l) the inverter's efficiency by panel power over kva.
    """

    row: jax.Array
    kva: jax.Array
    pmpp_kw: jax.Array
    most_kw: jax.Array
    cut_in_kw: jax.Array
    cut_out_kw: jax.Array
    temperature_c: jax.Array
    temperature_factor: jax.Array
    loading: jax.Array
    efficiency: jax.Array


def panels(feeder: Feeder) -> Panels:
    """The photovoltaic systems of a feeder that `gridjax.compile` accepts."""
    systems = feeder.pv_systems
    dtype = jnp.result_type(float)

    def column(values):
        return jnp.asarray(np.array(list(values), float), dtype)

    by_temperature = _table([pv.power_curve for pv in systems])
    by_loading = _table([pv.efficiency_curve for pv in systems])
    return Panels(
        row=len(feeder.generators) + jnp.arange(len(systems), dtype=jnp.int32),
        kva=column(pv.kva for pv in systems),
        pmpp_kw=column(pv.pmpp_kw for pv in systems),
        most_kw=column(pv.pmpp_percent / 100 * pv.pmpp_kw for pv in systems),
        # The cut-in is taken to be no lower than the cut-out.
        cut_in_kw=column(max(pv.cut_in_percent, pv.cut_out_percent) / 100 * pv.kva for pv in systems),
        cut_out_kw=column(pv.cut_out_percent / 100 * pv.kva for pv in systems),
        temperature_c=jnp.asarray(by_temperature[0], dtype),
        temperature_factor=jnp.asarray(by_temperature[1], dtype),
        loading=jnp.asarray(by_loading[0], dtype),
        efficiency=jnp.asarray(by_loading[1], dtype),
    )


def _table(curves: list[Matrix | None]) -> tuple[np.ndarray, np.ndarray]:
    """Curves of one length each, lengthened along their last segments; (curves, k) abscissae and ordinates."""
    rows = []
    for curve in curves:
        xs, ys = ([0.0, 1.0], [1.0, 1.0]) if curve is None else (list(curve[0]), list(curve[1]))
        rows.append((xs, ys) if len(xs) > 1 else ([xs[0], xs[0] + 1.0], [ys[0], ys[0]]))
    longest = max((len(xs) for xs, _ in rows), default=2)
    for xs, ys in rows:
        slope = (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
        end = xs[-1], ys[-1]
        more = range(1, longest - len(xs) + 1)
        xs += [end[0] + k for k in more]
        ys += [end[1] + slope * k for k in more]
    tables = (np.array([r[i] for r in rows], float).reshape(len(rows), longest) for i in (0, 1))
    return next(tables), next(tables)


def available(
    p: Panels, irradiance: jax.Array | float, temperature_c: jax.Array | float = 25.0, on: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """What the systems can deliver, and which inverters are on.

    Args:
      p: the systems.
      irradiance: kW/m^2 in the panels' plane, a scalar or (m,).
      temperature_c: of the panels, a scalar or (m,).
      on: (m,) which inverters were on before; None: all, as at the start of a snapshot.

    Returns:
      (m,) kW, and (m,) booleans.
    """
    irradiance, temperature_c = (
        jnp.broadcast_to(jnp.asarray(a, p.kva.dtype), p.kva.shape) for a in (irradiance, temperature_c)
    )
    panel_kw = irradiance * p.pmpp_kw * curve_values(p.temperature_c, p.temperature_factor, temperature_c)
    was_on = jnp.ones(p.kva.shape, bool) if on is None else on
    now_on = panel_kw >= jnp.where(was_on, p.cut_out_kw, p.cut_in_kw)
    efficiency = curve_values(p.loading, p.efficiency, panel_kw / p.kva)
    return inverter_kw(panel_kw, efficiency, p.most_kw, now_on), now_on


def with_available(p: Panels, point: OperatingPoint, kw: jax.Array) -> OperatingPoint:
    """The point with the systems' available power, (m,) kW, in its `generation_kw`."""
    return dataclasses.replace(point, generation_kw=point.generation_kw.at[p.row].set(kw))
