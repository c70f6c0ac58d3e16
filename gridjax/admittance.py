r"""Elements to primitive admittance matrices: what each conductor draws from all their voltages.

`I = Y V` with V the volts from each conductor to ground and I the amperes into the element. In
siemens:

- Series elements of impedance Z and shunt admittance Yc: the pi circuit
  `[[Z^-1 + Yc/2, -Z^-1], [-Z^-1, Z^-1 + Yc/2]]` (W. H. Kersting, "Distribution system modeling and
  analysis", 2002, chapter 6). With sequence values `Zs = (2 Z1 + Z0)/3` on the diagonal and
  `Zm = (Z0 - Z1)/3` off it, and the same for the capacitance; one phase is Z1 and C1 alone.
  Overhead lines: `gridjax.line_constants`.
- Sources: `Z^-1` of the sequence impedance. Where Z2 is not Z1 in three phases,
  `Z_21 = Z_32 = Z_13 = (Z0 + a^2 Z1 + a Z2)/3` and `Z_12 = Z_23 = Z_31 = (Z0 + a Z1 + a^2 Z2)/3`
  (the transform of C. L. Fortescue, 1918); in any other number of phases nothing is off the
  diagonal then.
- Transformers (R. C. Dugan, "A perspective on transformer modeling for distribution system
  analysis", IEEE PES General Meeting, 2003): with the windings' resistances r_i and the pairs'
  reactances x_ij, in per unit of one phase's share S of winding 1's rating,
  `ZB_ii = r_1 + r_(i+1) + j x_1(i+1)` and
  `ZB_ij = (ZB_ii + ZB_jj - (r_(i+1) + r_(j+1) + j x_(i+1)(j+1)))/2`. Then `Y1 = A' ZB^-1 A`,
  `A = [-1 | I]`, plus the no-load branch `(%noload - j %magnetizing)/100` across winding 2; on the
  windings' volts `S Y1_ij/(V_i V_j)`. In the circuit, with B_k the incidence of phase k and
  `D = diag(1/tap)`,

      Y = sum_k B_k' D Y1 D B_k + diag(y),

  where y is to ground and knows nothing of taps. On both ends of each winding and phase (and once
  more on a wye's neutral that has no impedance of its own) it is `-j ppm 1e-6 S/(2 V_i^2)`, so that
  nothing floats; and it has the neutral impedances, a zero one being 1e6 S.
- Capacitors: `y/(1 + (r + j xl) y)` a phase, `y = j kvar 1e-3/(phases kV^2)`, kV across the phase.
  In a delta of three the series impedance stands in the lines: `y/(1 + 3 (r + j xl) y)`.
- Reactors: `1/(r + j x) + 1/rp` a phase. Switches: `closed/(r + j x)`.

An element's `static` and `params` come from `gridjax.description`.
"""

from __future__ import annotations

import math

import numpy as np

from gridjax.description import (
    Description,
    describe,
    source_from_short_circuit,
    winding_conductors,
)
from gridjax.line_constants import line_constants
from gridjax.namespace import Array, beside, einsum, matmul, namespace

__all__ = [
    "Description",
    "capacitor_pairs",
    "capacitor_step_admittance",
    "describe",
    "ground_admittance",
    "incidence",
    "primitive",
    "source_from_short_circuit",
    "winding_admittance",
]

Params = dict[str, Array]
SOLID_NEUTRAL_S = 1e6
A = complex(-0.5, 0.866025)  # 1 at 120 degrees, with OpenDSS's digits


def primitive(static: tuple, params: Params) -> Array:
    """The primitive admittance matrix of one element, or of many with the same `static`.

    Args:
      static: `Description.static`.
      params: `Description.params`, or such stacked, as arrays of one real dtype.

    Returns:
      Complex (..., m, m) in siemens, of the precision of `params`, for the m `Description.conductors`.
      A source's other side is the ground and has no rows.

    Guarantees:
      Pure; NumPy for NumPy arrays, else JAX's, differentiable in every entry of `params`.
    """
    xp = namespace(params)
    return _PRIMITIVES[static[0]](static, {key: xp.asarray(p) for key, p in params.items()})


# --- Transformers and capacitors: the parts that taps and steps act upon. ---


def winding_admittance(static: tuple, params: Params) -> Array:
    """One phase's admittance between winding terminals at unity taps, no-load branch included.

    Args:
      static: a transformer's.
      params: a transformer's, or many's.

    Returns:
      Complex (..., w, w) in siemens: the windings' currents from their voltages, on their actual volts.
    """
    xp = namespace(params)
    w = len(static[2])
    volts, share = _winding_bases(static, params)
    r, x = xp.asarray(params["r_percent"]) / 100, xp.asarray(params["x_percent"]) / 100
    pair = {ij: k for k, ij in enumerate((i, j) for i in range(w) for j in range(i + 1, w))}
    short = {ij: r[..., ij[0]] + r[..., ij[1]] + 1j * x[..., k] for ij, k in pair.items()}
    zb = [[short[0, i]] * w for i in range(1, w)]
    for i in range(1, w):
        for j in range(1, w):
            if i != j:
                both = short[min(i, j), max(i, j)]
                zb[i - 1][j] = (short[0, i] + short[0, j] - both) / 2
    y = xp.linalg.inv(xp.stack([xp.stack(row[1:], axis=-1) for row in zb], axis=-2))
    a = np.concatenate([-np.ones((w - 1, 1)), np.eye(w - 1)], axis=1).astype(y.dtype)
    no_load = (xp.asarray(params["no_load_loss_percent"]) - 1j * xp.asarray(params["magnetizing_percent"])) / 100
    second = np.zeros((w, w), y.dtype)
    second[1, 1] = 1.0
    y1 = matmul(matmul(a.T, y), a)
    y1 = y1 + _each(no_load) * beside(second, y1)
    return y1 * _each(share) / (volts[..., :, None] * volts[..., None, :])


def incidence(static: tuple) -> np.ndarray:
    """A transformer's windings in its conductors.

    Returns:
      (phases, w, m) of +1, -1 and 0: `incidence[k, i] @ v` is the voltage of winding i of phase k.
    """
    _, phases, connections, direction, _ = static
    counts = [winding_conductors(phases, c) for c in connections]
    b = np.zeros((phases, len(connections), sum(counts)))
    start = 0
    for i, (connection, count) in enumerate(zip(connections, counts, strict=True)):
        for k in range(phases):
            neutral = connection == "wye" or phases == 1
            other = count - 1 if neutral else (k + direction) % 3
            b[k, i, start + k] += 1
            b[k, i, start + other] -= 1
        start += count
    return b


def ground_admittance(static: tuple, params: Params) -> Array:
    """A transformer's ties to ground: the antifloat shunts and the neutral impedances.

    Returns:
      Complex (..., m) in siemens, to be added to the diagonal; independent of the taps.
    """
    xp = namespace(params)
    _, phases, connections, _, neutrals = static
    volts, share = _winding_bases(static, params)
    b = -xp.asarray(params["antifloat_ppm"])[..., None] * 1e-6 * share[..., None] / volts**2 / 2
    shunt = 1j * b
    parts, start = [], 0
    for i, (connection, neutral) in enumerate(zip(connections, neutrals, strict=True)):
        m = winding_conductors(phases, connection)
        times = np.abs(incidence(static)).sum((0, 1))[start : start + m].astype(b.dtype)
        last = (np.arange(m) == m - 1).astype(b.dtype)
        times, last = beside(times, shunt), beside(last, shunt)
        part = shunt[..., i, None] * times
        if neutral == "open":
            part = part + shunt[..., i, None] * last
        elif neutral == "solid":
            part = part + SOLID_NEUTRAL_S * last
        elif neutral == "impedance":
            z = xp.asarray(params["r_neutral_ohm"])[..., i] + 1j * xp.asarray(params["x_neutral_ohm"])[..., i]
            part = part + (1 / z)[..., None] * last
        parts.append(part)
        start += m
    return xp.concatenate(parts, axis=-1)


def capacitor_step_admittance(static: tuple, params: Params) -> Array:
    """The admittance of each step alone, in one phase (wye) or one side of the delta.

    Returns:
      Complex (..., steps) in siemens, whether the step is closed or not.
    """
    xp = namespace(params)
    _, phases, connection, _ = static
    kv = xp.asarray(params["kv"])[..., None]
    if connection == "wye" and phases > 1:
        kv = kv / math.sqrt(3)
    y = 1j * (xp.asarray(params["kvar"]) / phases / kv**2 * 1e-3)
    z = xp.asarray(params["r_ohm"]) + 1j * xp.asarray(params["xl_ohm"])
    return y / (1 + z * y * (3 if connection == "delta" and phases == 3 else 1))


def capacitor_pairs(static: tuple) -> np.ndarray:
    """A bank's (or reactor's) branches in its conductors: (phases, m) of +1, -1 and 0."""
    _, phases, connection, _ = static
    if connection == "wye":
        return np.concatenate([np.eye(phases), -np.eye(phases)], axis=1)
    m = winding_conductors(phases, connection)
    return np.eye(phases, m) - np.roll(np.eye(phases, m), 1, axis=1)


# --- Elements to matrices. ---


def _each(a: Array) -> Array:
    """One number an element, beside matrices."""
    return a[..., None, None]


def _two_port(y: Array, shunt: Array | float = 0.0) -> Array:
    """The matrix of series admittance y between two terminals, half of `shunt` at each."""
    xp = namespace(y)
    own = y + shunt / 2
    top, bottom = xp.concatenate([own, -y], axis=-1), xp.concatenate([-y, own], axis=-1)
    return xp.concatenate([top, bottom], axis=-2)


def _line(static: tuple, params: Params) -> Array:
    xp = namespace(params)
    _, n, kind, *rest = static
    length = _each(params["length"] * params["unit_factor"])
    if kind == "geometry":
        z, yc = line_constants(n, rest[0], params)
        return _two_port(xp.linalg.inv(z * length), yc * length)
    if kind == "matrix":
        z, c = params["r"] + 1j * params["x"], params["c"]
    else:
        z1, c1 = params["r1"] + 1j * params["x1"], params["c1"]
        z0, c0 = (z1, c1) if n == 1 else (params["r0"] + 1j * params["x0"], params["c0"])
        z, c = _sequence_matrix(n, z1, z0), _sequence_matrix(n, c1, c0)
    b = 2 * math.pi * _each(params["frequency_hz"]) * 1e-9 * c * length
    return _two_port(xp.linalg.inv(z * length), 1j * b)


def _sequence_matrix(n: int, one: Array, zero: Array) -> Array:
    """`(2 one + zero)/3` on the diagonal, `(zero - one)/3` off it."""
    own = _each(one)
    return own * beside(np.eye(n, dtype=one.dtype), own) + _each((zero - one) / 3)


def _source(static: tuple, params: Params) -> Array:
    xp = namespace(params)
    _, n, symmetric = static
    z1 = params["r1_ohm"] + 1j * params["x1_ohm"]
    z0 = z1 if n == 1 else params["r0_ohm"] + 1j * params["x0_ohm"]
    if symmetric or n == 1:
        return xp.linalg.inv(_sequence_matrix(n, z1, z0))
    z2 = params["r2_ohm"] + 1j * params["x2_ohm"]
    z = _each((z0 + z1 + z2) / 3)
    z = z * beside(np.eye(n, dtype=z1.dtype), z)
    if n == 3:
        ring = beside(np.roll(np.eye(3), 1, axis=0).astype(z1.dtype), z)  # entries 21, 32 and 13
        below, above = (z0 + A**2 * z1 + A * z2) / 3, (z0 + A * z1 + A**2 * z2) / 3
        z = z + _each(below) * ring + _each(above) * ring.swapaxes(-1, -2)
    return xp.linalg.inv(z)


def _transformer(static: tuple, params: Params) -> Array:
    y1 = winding_admittance(static, params)
    y1 = y1 / (params["tap"][..., :, None] * params["tap"][..., None, :])
    b = incidence(static).astype(y1.dtype)
    y = einsum("kim,...ij,kjn->...mn", b, y1, b)
    ground = ground_admittance(static, params)
    return y + ground[..., None] * beside(np.eye(ground.shape[-1], dtype=y.dtype), y)


def _capacitor(static: tuple, params: Params) -> Array:
    y = (params["closed"] * capacitor_step_admittance(static, params)).sum(-1)
    b = capacitor_pairs(static).astype(y.dtype)
    y = _each(y)
    return y * beside(b.T @ b, y)


def _reactor(static: tuple, params: Params) -> Array:
    y = 1 / (params["r_ohm"] + 1j * params["x_ohm"])
    if "rp_ohm" in params:
        y = y + 1 / params["rp_ohm"]
    b = capacitor_pairs(static).astype(y.dtype)
    y = _each(y)
    return y * beside(b.T @ b, y)


def _switch(static: tuple, params: Params) -> Array:
    y = params["closed"] / (params["r_ohm"] + 1j * params["x_ohm"])
    y = _each(y)
    return _two_port(y * beside(np.eye(static[1], dtype=y.dtype), y))


def _admittance(static: tuple, params: Params) -> Array:
    return params["g"] + 1j * params["b"]


_PRIMITIVES = {
    "line": _line,
    "source": _source,
    "transformer": _transformer,
    "capacitor": _capacitor,
    "reactor": _reactor,
    "switch": _switch,
    "admittance": _admittance,
}


def _winding_bases(static: tuple, params: Params) -> tuple[Array, Array]:
    """The windings' volts across one phase (..., w), and the volt-amperes of one phase."""
    xp = namespace(params)
    _, phases, connections, *_ = static
    kv = xp.asarray(params["kv"])
    root = np.array([math.sqrt(3) if c == "wye" and phases > 1 else 1.0 for c in connections], kv.dtype)
    return kv * 1e3 / beside(root, kv), xp.asarray(params["kva"]) * 1e3 / phases
