r"""The same controls without steps: continuous taps and capacitor states where relays and power flow agree.

For gradients through controls that switch. With dt the step of a regulator and n its tap in such steps, the taps n and
each bank's share s in service solve, with the power flow,

    n = clip(n + (vreg - (band / 2) tanh((n - n0) / c) - U(n, s)) PT / (V_rated dt), lowest, highest),
    s = sigma(z),    z = (s0 off + (1 - s0) on - x(n, s)) / (c (off - on) / 2),    sigma(z) = 1 / (1 + exp(-z)).

A tap stays near where it was, n0, while the voltage U that its relay sees is within the band, and holds the nearer edge
of the band when it would not be; the softness c says over how many taps the one turns into the other. A voltage limit
takes the place of the bracket where `limit - U` is less. A bank that was out (s0 = 0) goes in where its quantity x (see
`gridjax.control.capacitors`) passes `on`, one that was in goes out where x passes `off`. All steps of a bank are in
service by the same share; banks that go by the time of day are in or out.

The equations are solved by Newton's method, semismooth at the ends of the range (L. Qi and J. Sun, 1993), with
the power flow's own derivatives, and differentiated implicitly.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from gridjax.control import capacitors, regulators
from gridjax.control.meters import Reading, read
from gridjax.control.switching import Solver, Switching, hour_of, power_flow
from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow.solve import PowerFlow

GAP = 1e-6  # of taps, and of z
ITERATIONS = 40
FAR = 12.0  # z of a bank that is in or out for good: 6e-6 of it are not


def settle_continuously(
    grid: Grid,
    point: OperatingPoint,
    switching: Switching,
    solver: Solver = power_flow,
    *,
    hour: jax.Array | float | None = None,
    softness: jax.Array | float = 1.0,
) -> tuple[OperatingPoint, PowerFlow, jax.Array]:
    """Continuous taps and capacitor states that agree with the power flow, differentiable.

    Regulators look forwards; the voltage override of capacitors and the least kvar of the kind pf are left out.

    Args:
      grid: a compiled feeder.
      point: what is asked of it; its taps and controlled capacitor steps are where the devices come from.
      switching: its controls.
      solver: `(grid, point) -> (point, flow)`, differentiable.
      hour: time of the day; needed by time controls.
      softness: c; small values come near to switching and are harder to solve.

    Returns:
      The point with the taps and shares; its power flow; the gap that is left, in taps or in z, above `GAP` where the
      equations were not solved and infinite where the power flow was not.

    Raises:
      ValueError: there are time controls, and no `hour`.

    Guarantees:
      Derivatives are the implicit ones, forward and reverse, with respect to the point (but for where the devices come
      from), the settings, the softness and the grid; the meters' admittances count as constants, and so do taps at an
      end of their range. They are zero where the gap is above `GAP`.
    """
    inputs = grid, point, switching, jnp.asarray(softness, switching.regulators.step.dtype)
    at_hour = hour_of(switching, hour)
    begin = jax.lax.stop_gradient(_begin(switching, point))
    x, left = begin, jnp.zeros((), begin.dtype)
    if begin.shape[0]:
        still = functools.partial(_asked, *jax.lax.stop_gradient(inputs), begin, at_hour, solver)
        start = begin.at[switching.regulators.step.shape[0] :].set(0.0)
        root, slopes = jax.lax.stop_gradient(_newton(switching, still, start))
        # A Newton step from the solution: it changes nothing, and has the implicit derivative.
        gap = root - _asked(*inputs, begin, at_hour, solver, _position(switching, root))
        slopes = jnp.where(jnp.all(jnp.isfinite(slopes)), slopes, jnp.eye(root.shape[0], dtype=root.dtype))
        left = jnp.max(jnp.abs(jax.lax.stop_gradient(gap)))
        x = jnp.where(left <= GAP, root - jnp.linalg.solve(slopes, gap[:, None])[:, 0], root)
    solved, flow = solver(grid, _placed(switching, point, _position(switching, x)))
    return solved, flow, left


def _asked(
    grid: Grid,
    point: OperatingPoint,
    switching: Switching,
    soft: jax.Array,
    begin: jax.Array,
    hour: jax.Array,
    solver: Solver,
    y: jax.Array,
) -> jax.Array:
    """Taps and z that the controls ask for at the taps and shares y; infinite without a power flow."""
    taps = switching.regulators.step.shape[0]
    solved, flow = solver(grid, _placed(switching, point, y))
    reading = read(switching.meters, grid, solved, flow)
    asked = jnp.append(
        _taps(switching, reading, y[:taps], begin[:taps], soft),
        _z(switching, reading, jax.nn.sigmoid(begin[taps:]), hour, soft),
    )
    return jnp.where(flow.converged, asked, jnp.inf)


def _position(switching: Switching, x: jax.Array) -> jax.Array:
    """Taps and shares from taps and z."""
    taps = switching.regulators.step.shape[0]
    return jnp.append(x[:taps], jax.nn.sigmoid(x[taps:]))


def _gap_and_slopes(
    switching: Switching, asked: Callable[[jax.Array], jax.Array], x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The taps and z of x less those asked for, and the Jacobian of that.

    The power flow is differentiated by the shares themselves, since the slopes of shares by z may all but vanish.
    """
    y, dy = jax.jvp(functools.partial(_position, switching), (x,), (jnp.ones_like(x),))

    def twice(y):
        value = asked(y)
        return value, value

    slopes, value = jax.jacfwd(twice, has_aux=True)(y)
    return x - value, jnp.eye(x.shape[0], dtype=x.dtype) - slopes * dy[None]


def _begin(switching: Switching, point: OperatingPoint) -> jax.Array:
    """Taps in steps and z of the banks as they are in a point."""
    n = (point.tap - 1.0) / switching.regulators.step
    settings = switching.capacitors
    controls = settings.kind.shape[0]
    total = jnp.zeros(controls + 1, point.capacitor.dtype).at[settings.step_control].add(point.capacitor)
    share = jnp.clip(total[:controls] / settings.count, 1e-6, 1.0 - 1e-6)
    return jnp.append(
        jnp.clip(n, switching.regulators.lowest, switching.regulators.highest), jnp.log(share / (1 - share))
    )


def _placed(switching: Switching, point: OperatingPoint, y: jax.Array) -> OperatingPoint:
    """The point with the taps and shares y."""
    taps, settings = switching.regulators.step.shape[0], switching.capacitors
    share = jnp.append(y[taps:], jnp.zeros(1, y.dtype))[settings.step_control]
    controlled = settings.step_control < settings.kind.shape[0]
    return dataclasses.replace(
        point,
        tap=regulators.ratios(switching.regulators, y[:taps]).astype(point.tap.dtype),
        capacitor=jnp.where(controlled, share.astype(point.capacitor.dtype), point.capacitor),
    )


def _taps(switching: Switching, reading: Reading, n: jax.Array, n0: jax.Array, soft: jax.Array) -> jax.Array:
    """The taps that the relays ask for, (regulators,)."""
    settings = switching.regulators
    u, local = regulators.relay_volts(settings, reading, regulators.ratios(settings, n))
    boost = settings.vreg - settings.band / 2 * jnp.tanh((n - n0) / soft) - u
    if settings.limited:
        boost = jnp.minimum(boost, settings.voltage_limit - local)
    asked = n + boost * settings.pt_ratio / settings.rated_volts / settings.step
    return jnp.where(settings.enabled, jnp.clip(asked, settings.lowest, settings.highest), n0)


def _z(switching: Switching, reading: Reading, s0: jax.Array, hour: jax.Array, soft: jax.Array) -> jax.Array:
    """The z that the capacitor controls ask for, (controls,)."""
    settings = switching.capacitors
    if not s0.shape[0]:
        return s0
    x, _, _ = capacitors.quantity(settings, reading, hour)
    falling = (settings.kind == 0) | (settings.kind == 3)
    least = 1e-3 * jnp.abs(settings.on)  # where on and off are the same
    width = jnp.maximum(jnp.abs(settings.off - settings.on) / 2, least) * jnp.where(falling, 1.0, -1.0)
    z = (s0 * settings.off + (1 - s0) * settings.on - x) / (soft * width)
    within = capacitors.by_the_clock(settings, hour)[0]
    return jnp.clip(jnp.where(settings.kind == 4, jnp.where(within, FAR, -FAR), z), -FAR, FAR)


def _newton(
    switching: Switching, asked: Callable[[jax.Array], jax.Array], begin: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where `asked` agrees with x, or the best that `ITERATIONS` steps find, and the Jacobian at the last.

    Steps are shorter where the gap grows.
    """

    def body(carry):
        x, _, last, length, count = carry
        gap, slopes = _gap_and_slopes(switching, asked, x)
        size = jnp.max(jnp.abs(gap))
        length = jnp.where(size > last, jnp.maximum(length / 2, 1 / 16), jnp.minimum(2 * length, 1.0))
        further = length * jnp.linalg.solve(slopes, gap[:, None])[:, 0]
        done = (size <= GAP / 100) | ~jnp.all(jnp.isfinite(further))
        return jnp.where(done, x, x - further), slopes, jnp.where(done, 0.0, size), length, count + 1

    def going(carry):
        return (carry[2] > 0) & (carry[4] < ITERATIONS)

    infinite = jnp.asarray(jnp.inf, begin.dtype)
    slopes = jnp.eye(begin.shape[0], dtype=begin.dtype)
    carry = begin, slopes, infinite, jnp.ones_like(infinite), jnp.zeros((), jnp.int32)
    return jax.lax.while_loop(going, body, carry)[:2]
