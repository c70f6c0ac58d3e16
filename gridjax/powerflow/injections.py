"""What a device draws at a voltage: load models 1 to 8, generators, capacitor steps.

Every phase of every device is a *unit*: it sits between two nodes, sees the voltage `u = ur + j ui` in per unit
of its own rating, and draws the current

    I(u) = conj(S0 / u0) ...  written as an admittance that depends on |u| only:
    I(u) = [ p fp(v) - j q fq(v) ] u,      v = |u|,

where `p + j q` is its nominal power. With `J = 1/vmin` for power-like models and `J = 1` for constant current,
the factor f (OpenDSS, `Load.pas`, R. Dugan, 2008 ff.; EPRI OpenDSS manual, "Load models") is

    v > vmax           f = high                  (1/vmax^2; 1/vmax for model 5; 1 for model 2)
    vmin < v <= vmax   f = power/v^2 + current/v + impedance      (ZIP), or v^(e-2) with an exponent e (model 4)
    vlow < v <= vmin   f = offset/v + slope, the straight line of |I| from vlow (at v = vlow) to J (at vmin)
    v <= vlow          f = low                   (1: the nominal impedance)

Models 6 and 7 have f = 1/vmin^2 (real part) and 1 (imaginary part) between vlow and vmin. Model 8 (ZIPV)
mixes the laws of its three shares, and is multiplied by (1 + tanh(500 (v - cutoff)))/2 above vlow. Generators
have no straight line: low = 1/vmin^2 right below vmin. A capacitor step is a unit of constant impedance.
"""

from __future__ import annotations

import flax.struct
import jax

from gridjax.feeder import Generator, Load, PVSystem, Storage
from gridjax.namespace import namespace


@flax.struct.dataclass
class Laws:
    """Coefficients of f, one entry a unit, all of one shape; the real and the imaginary part have their own."""

    power_p: jax.Array
    current_p: jax.Array
    impedance_p: jax.Array
    power_q: jax.Array
    current_q: jax.Array
    impedance_q: jax.Array
    extra_p: jax.Array  # coefficient of v^(exponent_p - 2)
    extra_q: jax.Array
    exponent_p: jax.Array
    exponent_q: jax.Array
    vmin: jax.Array
    vmax: jax.Array
    vlow: jax.Array
    offset_p: jax.Array
    offset_q: jax.Array
    slope_p: jax.Array
    slope_q: jax.Array
    low_p: jax.Array
    low_q: jax.Array
    high_p: jax.Array
    high_q: jax.Array
    cutoff: jax.Array


IMPEDANCE = {
    "power_p": 0.0, "current_p": 0.0, "impedance_p": 1.0,
    "power_q": 0.0, "current_q": 0.0, "impedance_q": 1.0,
    "extra_p": 0.0, "extra_q": 0.0, "exponent_p": 2.0, "exponent_q": 2.0,
    "vmin": 0.0, "vmax": 1e9, "vlow": -1.0,
    "offset_p": 0.0, "offset_q": 0.0, "slope_p": 1.0, "slope_q": 1.0,
    "low_p": 1.0, "low_q": 1.0, "high_p": 1.0, "high_q": 1.0, "cutoff": -1.0,
}  # fmt: skip


def _zip(p: tuple[float, ...], q: tuple[float, ...]) -> dict[str, float]:
    """Shares of constant impedance, current and power of the real and the imaginary part."""
    return {
        "impedance_p": p[0], "current_p": p[1], "power_p": p[2],
        "impedance_q": q[0], "current_q": q[1], "power_q": q[2],
    }  # fmt: skip


_Z, _I, _P, _NONE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)
_MODELS = {1: (_P, _P), 2: (_Z, _Z), 3: (_P, _Z), 5: (_I, _I), 6: (_P, _P), 7: (_P, _Z)}


def load_law(load: Load) -> dict[str, float]:
    """The coefficients of one load; `validate` has checked the model's number and limits."""
    law = dict(IMPEDANCE)
    vmin, vmax, vlow = load.vmin_pu, load.vmax_pu, load.vlow_pu
    if load.model == 2:
        return law
    law.update(vmin=vmin, vmax=vmax, vlow=min(vlow, vmin))
    if load.model in (6, 7):
        law.update(_zip(*_MODELS[load.model]), slope_p=_low(vmin), high_p=1 / vmax**2)
        return law
    if load.model == 8:
        zipv = load.zipv or (0.0,) * 7
        shares = (zipv[:3], zipv[3:6])
        law.update(_zip(*shares), cutoff=zipv[6])
        outside = shares
    elif load.model == 4:
        law.update(_zip(_NONE, _NONE), extra_p=1.0, extra_q=1.0)
        law.update(exponent_p=load.cvr_watts, exponent_q=load.cvr_vars)
        outside = (_P, _P)
    else:
        law.update(_zip(*_MODELS[load.model]))
        outside = (_I, _I) if load.model == 5 else (_P, _P)
    for part, (z, i, p) in zip("pq", outside, strict=True):
        offset_p, slope_p = _straight(vlow, vmin, vmin * _low(vmin))
        offset_i, slope_i = _straight(vlow, vmin, 1.0)
        law["offset_" + part] = i * offset_i + p * offset_p
        law["slope_" + part] = z + i * slope_i + p * slope_p
        law["high_" + part] = z + i / vmax + p / vmax**2
    return law


def _low(vmin: float) -> float:
    """`1/vmin^2`; without a lower limit nothing lies below it."""
    return 1 / vmin**2 if vmin > 0 else 1.0


def _straight(vlow: float, vmin: float, top: float) -> tuple[float, float]:
    """Offset and slope of |I| between (vlow, vlow) and (vmin, top)."""
    slope = (top - vlow) / (vmin - vlow) if vmin > vlow else 0.0
    return vlow - slope * vlow, slope


def generator_law(device: Generator | PVSystem | Storage) -> dict[str, float]:
    """Constant power between vmin and vmax and the impedance of the nearer limit outside; model 2: impedance."""
    law = dict(IMPEDANCE)
    if device.model == 2:
        return law
    vmin, vmax = device.vmin_pu, device.vmax_pu
    low, high = _low(vmin), 1 / vmax**2
    law.update(_zip(_P, _P), vmin=vmin, vmax=vmax, vlow=vmin)
    law.update(low_p=low, low_q=low, high_p=high, high_q=high)
    return law


def factors(laws: Laws, v2: jax.Array, exponents: bool, cutoffs: bool) -> tuple[jax.Array, jax.Array]:
    """Factors f of the real and the imaginary part at the squared voltage magnitude `v2` (pu).

    Args:
      laws: coefficients that broadcast against `v2`.
      v2: |u|^2, any shape.
      exponents: whether any unit has an `extra` term (static; saves the powers otherwise).
      cutoffs: whether any unit has a cut-off voltage (static).
    """
    # Below 1e-3 pu every law is an impedance; the floor keeps unused branches and their derivatives finite.
    xp = namespace(laws, v2)
    v2 = xp.maximum(v2, 1e-6)
    v = xp.sqrt(v2)
    inverse = 1.0 / v
    high, inside, low = v > laws.vmax, v > laws.vmin, v <= laws.vlow

    def one(power, current, impedance, extra, exponent, offset, slope, f_low, f_high):
        band = (power * inverse + current) * inverse + impedance
        if exponents:
            band = band + extra * v ** (exponent - 2.0)
        line = offset * inverse + slope
        return xp.where(high, f_high, xp.where(inside, band, xp.where(low, f_low, line)))

    fp = one(laws.power_p, laws.current_p, laws.impedance_p, laws.extra_p, laws.exponent_p,
             laws.offset_p, laws.slope_p, laws.low_p, laws.high_p)  # fmt: skip
    fq = one(laws.power_q, laws.current_q, laws.impedance_q, laws.extra_q, laws.exponent_q,
             laws.offset_q, laws.slope_q, laws.low_q, laws.high_q)  # fmt: skip
    if cutoffs:
        drop = 0.5 * (1.0 + xp.tanh(500.0 * (v - laws.cutoff)))
        drop = xp.where((laws.cutoff > 0) & ~low, drop, 1.0)
        fp, fq = fp * drop, fq * drop
    return fp, fq
