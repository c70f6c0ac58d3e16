r"""Series impedance and shunt admittance per metre of overhead conductors over a lossy earth.

With heights `h_i`, horizontal places `x_i`, `H = h_i + h_j`, `d = x_i - x_j`,
`D = sqrt(H^2 + d^2)` (from a conductor to the other's image), `w = 2 pi f` and `k = w mu0/(2 pi)`,
in ohm/m:

    Z_ii = z_i + E_ii,    Z_ij = -j k ln sqrt((h_i - h_j)^2 + d^2) + E_ij

The earth's return `E`, of resistivity `rho`, is by one of

    deri        j k ln sqrt((H + 2/m)^2 + d^2),  m = sqrt(j w mu0/rho): the complex depth of
                A. Deri, G. Tevan, A. Semlyen, A. Castanheira, "The complex ground return plane",
                IEEE Trans. PAS-100, 1981
    carson      w mu0/8 + j k ln(658.5 sqrt(rho/f)): the first terms of J. R. Carson, "Wave
                propagation in overhead wires with ground return", Bell System Technical Journal
                5, 1926
    fullcarson  Carson's series to its fourth power, as in N. D. Tleis, "Power systems modelling and
                fault analysis", 2008, section 3.2

and the conductor's own `z_i` by

    deri        (Rdc/2) s I0(s)/I1(s), s^2 = 2 j f mu0/Rdc: the skin effect in a round wire
                (S. Ramo, J. R. Whinnery, T. Van Duzer, "Fields and waves in communication
                electronics", 1965, section 5.14)
    others      Rac + j w mu0/(8 pi)

plus `-j k ln(radius_i)`. At power frequencies, 40 < f < 1000 Hz, all of its imaginary part is
`-k ln(GMR_i)` instead. The capacitances are the inverse of `P_ii = ln(2 h_i/a_i)`,
`P_ij = ln(D/distance)`, in S/m:

    Y = j w 2 pi e0 P^-1

Neutral conductors are at ground potential all along the line: a Kron reduction of Z, and a leading
block of `P^-1`. From the recurrence of Bessel functions (NIST Digital Library of Mathematical
Functions, 10.29.1) follows `s I0/I1 = 2 + s^2/(4 + s^2/(6 + ...))`, a function of `s^2` alone.
`MU0`, `E0` and `TWO_PI` have the digits that OpenDSS gives them.
"""

from __future__ import annotations

import math

import numpy as np
from jax import lax

from gridjax.namespace import Array, beside, matmul, namespace

EARTH_MODELS = ("deri", "carson", "fullcarson")
MU0 = 12.56637e-7  # H/m
E0 = 8.854e-12  # F/m
TWO_PI = 6.283185307
BESSEL_TERMS = 64
B1, B2 = 1 / (3 * math.sqrt(2)), 1 / 16  # Carson's series
B3, B4 = B1 / 15, B2 / 24
D2, D4 = B2 * math.pi / 4, B4 * math.pi / 4
C2 = 1.3659315
C4 = C2 + 1 / 4 + 1 / 6


def bessel_quotient(s_squared: Array) -> Array:
    """`s I0(s)/I1(s)` of a complex argument given by its square, to rounding for |s| up to 40.

    Args:
      s_squared: complex, of any shape; the real part of s is not negative.

    Returns:
      An array of the same shape and dtype.

    Guarantees:
      Differentiable everywhere in that range, at 0 too (where it is 2 + s^2/4 + ...).
    """
    xp = namespace(s_squared)
    orders = np.arange(2 * BESSEL_TERMS, 2, -2).astype(s_squared.real.dtype)
    tail = xp.full_like(s_squared, 2.0 * BESSEL_TERMS + 2)
    if xp is np:
        for n in orders:
            tail = n + s_squared / tail
    else:
        tail, _ = lax.scan(lambda f, n: (n + s_squared / f, None), tail, orders)
    return 2 + s_squared / tail


def earth_return(model: str, h_sum: Array, d: Array, rho: Array, frequency: Array) -> Array:
    """The earth's part of the impedance between conductors, less its geometric logarithm.

    Args:
      model: one of `EARTH_MODELS`.
      h_sum: sums of the two heights, m.
      d: horizontal distances, m, of the shape of `h_sum`.
      rho: resistivity of the earth, ohm m.
      frequency: Hz.

    Returns:
      Complex ohm/m, of the shape of `h_sum`.
    """
    xp = namespace(h_sum, d, rho, frequency)
    w = TWO_PI * frequency
    k = w * MU0 / TWO_PI
    if model == "deri":
        depth = 1 / xp.sqrt(1j * (w * MU0 / rho))
        return 1j * k * xp.log(xp.sqrt((h_sum + 2 * depth) ** 2 + d**2))
    if model == "carson":
        one = xp.ones_like(h_sum)
        return (w * MU0 / 8 + 1j * (k * xp.log(658.5 * xp.sqrt(rho / frequency)))) * one
    distance = xp.sqrt(h_sum**2 + d**2)
    t = xp.arctan2(xp.abs(d), h_sum)
    m = 2.8099e-3 * distance * xp.sqrt(frequency / rho)
    log_m = xp.log(m)
    p = (
        math.pi / 8
        - B1 * m * xp.cos(t)
        + B2 * m**2 * ((C2 - log_m) * xp.cos(2 * t) + t * xp.sin(2 * t))
        + B3 * m**3 * xp.cos(3 * t)
        - D4 * m**4 * xp.cos(4 * t)
    )
    q = (
        0.5 * (math.log(1.85138) - log_m)
        + B1 * m * xp.cos(t)
        - D2 * m**2 * xp.cos(2 * t)
        + B3 * m**3 * xp.cos(3 * t)
        - B4 * m**4 * ((C4 - log_m) * xp.cos(4 * t) + t * xp.sin(4 * t))
        + 0.5 * xp.log(distance)
    )
    return w * MU0 / math.pi * (p + 1j * q)


def line_constants(phases: int, earth_model: str, params: dict[str, Array]) -> tuple[Array, Array]:
    """Impedance and admittance per metre of the first `phases` of n overhead conductors.

    Args:
      phases: how many conductors remain; the others are grounded neutrals.
      earth_model: one of `EARTH_MODELS`.
      params: `x_m`, `h_m`, `r_dc_ohm_per_km`, `r_ac_ohm_per_km`, `gmr_m`, `radius_m` and
        `cap_radius_m`, all of shape (..., n); `rho_ohm_m` and `frequency_hz`, (...).

    Returns:
      `(z, y)`, complex (..., phases, phases): ohm/m in series, S/m in shunt.

    Guarantees:
      Differentiable in every entry of `params`, but for frequencies of 40 and 1000 Hz where the
      model jumps.
    """
    xp = namespace(params)
    x, h = params["x_m"], params["h_m"]
    f, rho = (params[key][..., None, None] for key in ("frequency_hz", "rho_ohm_m"))
    n = x.shape[-1]
    k = TWO_PI * f * MU0 / TWO_PI
    h_sum, d = h[..., :, None] + h[..., None, :], x[..., :, None] - x[..., None, :]
    eye = beside(np.eye(n, dtype=bool), d)
    squares = (h[..., :, None] - h[..., None, :]) ** 2 + d**2
    distance = xp.sqrt(xp.where(eye, 1.0, squares))

    r_dc = params["r_dc_ohm_per_km"] * 1e-3
    own_f, own_k = f[..., 0], k[..., 0]
    if earth_model == "deri":
        s_squared = 1j * (2 * own_f * MU0 / r_dc)
        own = r_dc / 2 * bessel_quotient(s_squared)
        r, x_own = own.real, own.imag
    else:
        r = params["r_ac_ohm_per_km"] * 1e-3
        x_own = xp.full_like(r, 1.0) * TWO_PI * own_f * MU0 / (8 * math.pi)
    at_power_frequency = (own_f > 40) & (own_f < 1000)
    x_own = xp.where(
        at_power_frequency,
        -own_k * xp.log(params["gmr_m"]),
        x_own - own_k * xp.log(params["radius_m"]),
    )
    z = earth_return(earth_model, h_sum, d, rho, f)
    z = z + (r + 1j * x_own)[..., None] * eye - 1j * k * xp.log(distance)

    image = xp.sqrt(h_sum**2 + d**2)
    p = xp.where(eye, xp.log(2 * h / params["cap_radius_m"])[..., None], xp.log(image / distance))
    y = (1j * TWO_PI * f * TWO_PI * E0) * xp.linalg.inv(p)
    return kron(z, phases), y[..., :phases, :phases]


def kron(z: Array, kept: int) -> Array:
    """Eliminates the rows and columns after the first `kept`, whose voltage is zero."""
    if kept == z.shape[-1]:
        return z
    b = z[..., :kept, kept:]
    return z[..., :kept, :kept] - matmul(b, namespace(z).linalg.solve(z[..., kept:, kept:], z[..., kept:, :kept]))
