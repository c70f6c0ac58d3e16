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

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gridjax.description import (
    Description,
    describe,
    source_from_short_circuit,
    winding_conductors,
)
from gridjax.line_constants import line_constants

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

Params = dict[str, jax.Array]
SOLID_NEUTRAL_S = 1e6
A = complex(-0.5, 0.866025)  # 1 at 120 degrees, with OpenDSS's digits


def primitive(static: tuple, params: Params) -> jax.Array:
    """The primitive admittance matrix of one element.

    Args:
      static: `Description.static`.
      params: `Description.params`, as arrays of one real dtype.

    Returns:
      Complex (m, m) in siemens, of the precision of `params`, for the m `Description.conductors`.
      A source's other side is the ground and has no rows.

    Guarantees:
      Pure; `vmap` over stacked params; differentiable in every entry of `params`.
    """
    return _PRIMITIVES[static[0]](static, {key: jnp.asarray(p) for key, p in params.items()})


# --- Transformers and capacitors: the parts that taps and steps act upon. ---


def winding_admittance(static: tuple, params: Params) -> jax.Array:
    """One phase's admittance between winding terminals at unity taps, no-load branch included.

    Args:
      static: a transformer's.
      params: a transformer's.

    Returns:
      Complex (w, w) in siemens: the windings' currents from their voltages, on their actual volts.
    """
    w = len(static[2])
    volts, share = _winding_bases(static, params)
    r, x = params["r_percent"] / 100, params["x_percent"] / 100
    pair = {ij: k for k, ij in enumerate((i, j) for i in range(w) for j in range(i + 1, w))}
    short = {ij: lax.complex(r[ij[0]] + r[ij[1]], x[k]) for ij, k in pair.items()}
    zb = [[short[0, i]] * w for i in range(1, w)]
    for i in range(1, w):
        for j in range(1, w):
            if i != j:
                both = short[min(i, j), max(i, j)]
                zb[i - 1][j] = (short[0, i] + short[0, j] - both) / 2
    y = jnp.linalg.inv(jnp.stack([jnp.stack(row[1:]) for row in zb]))
    a = jnp.concatenate([-jnp.ones((w - 1, 1)), jnp.eye(w - 1)], axis=1).astype(y.dtype)
    y1 = a.T @ y @ a
    no_load = lax.complex(params["no_load_loss_percent"], -params["magnetizing_percent"]) / 100
    y1 = y1.at[1, 1].add(no_load)
    return y1 * share / (volts[:, None] * volts[None, :])


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


def ground_admittance(static: tuple, params: Params) -> jax.Array:
    """A transformer's ties to ground: the antifloat shunts and the neutral impedances.

    Returns:
      Complex (m,) in siemens, to be added to the diagonal; independent of the taps.
    """
    _, phases, connections, _, neutrals = static
    volts, share = _winding_bases(static, params)
    b = -params["antifloat_ppm"] * 1e-6 * share / volts**2 / 2
    shunt = lax.complex(jnp.zeros_like(b), b)
    parts = []
    for i, (connection, neutral) in enumerate(zip(connections, neutrals, strict=True)):
        m = winding_conductors(phases, connection)
        times = np.abs(incidence(static)).sum((0, 1))[sum(map(len, parts)) :][:m]
        part = jnp.asarray(times, b.dtype) * shunt[i]
        if neutral == "open":
            part = part.at[-1].add(shunt[i])
        elif neutral == "solid":
            part = part.at[-1].add(SOLID_NEUTRAL_S)
        elif neutral == "impedance":
            z = lax.complex(params["r_neutral_ohm"][i], params["x_neutral_ohm"][i])
            part = part.at[-1].add(1 / z)
        parts.append(part)
    return jnp.concatenate(parts)


def capacitor_step_admittance(static: tuple, params: Params) -> jax.Array:
    """The admittance of each step alone, in one phase (wye) or one side of the delta.

    Returns:
      Complex (steps,) in siemens, whether the step is closed or not.
    """
    _, phases, connection, _ = static
    kv = params["kv"]
    if connection == "wye" and phases > 1:
        kv = kv / math.sqrt(3)
    b = params["kvar"] / phases / kv**2 * 1e-3
    y = lax.complex(jnp.zeros_like(b), b)
    z = lax.complex(params["r_ohm"], params["xl_ohm"])
    return y / (1 + z * y * (3 if connection == "delta" and phases == 3 else 1))


def capacitor_pairs(static: tuple) -> np.ndarray:
    """A bank's (or reactor's) branches in its conductors: (phases, m) of +1, -1 and 0."""
    _, phases, connection, _ = static
    if connection == "wye":
        return np.concatenate([np.eye(phases), -np.eye(phases)], axis=1)
    m = winding_conductors(phases, connection)
    return np.eye(phases, m) - np.roll(np.eye(phases, m), 1, axis=1)


# --- Elements to matrices. ---


def _two_port(y: jax.Array, shunt: jax.Array | float = 0.0) -> jax.Array:
    """The matrix of series admittance y between two terminals, half of `shunt` at each."""
    own = y + shunt / 2
    return jnp.block([[own, -y], [-y, own]])


def _line(static: tuple, params: Params) -> jax.Array:
    _, n, kind, *rest = static
    length = params["length"] * params["unit_factor"]
    if kind == "geometry":
        z, yc = line_constants(n, rest[0], params)
        return _two_port(jnp.linalg.inv(z * length), yc * length)
    if kind == "matrix":
        z, c = lax.complex(params["r"], params["x"]), params["c"]
    else:
        z1, c1 = lax.complex(params["r1"], params["x1"]), params["c1"]
        z0, c0 = (z1, c1) if n == 1 else (lax.complex(params["r0"], params["x0"]), params["c0"])
        z, c = _sequence_matrix(n, z1, z0), _sequence_matrix(n, c1, c0)
    b = 2 * math.pi * params["frequency_hz"] * 1e-9 * c * length
    return _two_port(jnp.linalg.inv(z * length), lax.complex(jnp.zeros_like(b), b))


def _sequence_matrix(n: int, one: jax.Array, zero: jax.Array) -> jax.Array:
    """`(2 one + zero)/3` on the diagonal, `(zero - one)/3` off it."""
    return one * jnp.eye(n, dtype=one.dtype) + (zero - one) / 3


def _source(static: tuple, params: Params) -> jax.Array:
    _, n, symmetric = static
    z1 = lax.complex(params["r1_ohm"], params["x1_ohm"])
    z0 = z1 if n == 1 else lax.complex(params["r0_ohm"], params["x0_ohm"])
    if symmetric or n == 1:
        return jnp.linalg.inv(_sequence_matrix(n, z1, z0))
    z2 = lax.complex(params["r2_ohm"], params["x2_ohm"])
    z = (z0 + z1 + z2) / 3 * jnp.eye(n, dtype=z1.dtype)
    if n == 3:
        ring = np.roll(np.eye(3), 1, axis=0)  # entries 21, 32 and 13
        below, above = (z0 + A**2 * z1 + A * z2) / 3, (z0 + A * z1 + A**2 * z2) / 3
        z = z + below * jnp.asarray(ring, z.dtype) + above * jnp.asarray(ring.T, z.dtype)
    return jnp.linalg.inv(z)


def _transformer(static: tuple, params: Params) -> jax.Array:
    y1 = winding_admittance(static, params)
    y1 = y1 / (params["tap"][:, None] * params["tap"][None, :])
    b = jnp.asarray(incidence(static), y1.dtype)
    y = jnp.einsum("kim,ij,kjn->mn", b, y1, b)
    return y + jnp.diag(ground_admittance(static, params))


def _capacitor(static: tuple, params: Params) -> jax.Array:
    y = jnp.sum(params["closed"] * capacitor_step_admittance(static, params))
    b = jnp.asarray(capacitor_pairs(static), y.dtype)
    return y * (b.T @ b)


def _reactor(static: tuple, params: Params) -> jax.Array:
    y = 1 / lax.complex(params["r_ohm"], params["x_ohm"])
    if "rp_ohm" in params:
        y = y + 1 / params["rp_ohm"]
    b = jnp.asarray(capacitor_pairs(static), y.dtype)
    return y * (b.T @ b)


def _switch(static: tuple, params: Params) -> jax.Array:
    y = params["closed"] / lax.complex(params["r_ohm"], params["x_ohm"])
    return _two_port(y * jnp.eye(static[1], dtype=y.dtype))


def _admittance(static: tuple, params: Params) -> jax.Array:
    return lax.complex(params["g"], params["b"])


_PRIMITIVES = {
    "line": _line,
    "source": _source,
    "transformer": _transformer,
    "capacitor": _capacitor,
    "reactor": _reactor,
    "switch": _switch,
    "admittance": _admittance,
}


def _winding_bases(static: tuple, params: Params) -> tuple[jax.Array, jax.Array]:
    """The windings' volts across one phase (w,), and the volt-amperes of one phase."""
    _, phases, connections, *_ = static
    root = [math.sqrt(3) if c == "wye" and phases > 1 else 1.0 for c in connections]
    kv = jnp.asarray(params["kv"])
    return kv * 1e3 / jnp.asarray(root, kv.dtype), params["kva"] * 1e3 / phases
