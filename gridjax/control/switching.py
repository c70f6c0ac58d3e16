r"""Regulators and capacitor controls around a power flow, in OpenDSS's static and timed ways.

Both ways repeat: solve the power flow, let all controls look at it (`sample`), let what is due act, until nothing is.

- `settle` (static): time stands still; of all requests in the queue those that are due first act, then the circuit is
  solved again. So the short delays, usually upstream, come first, and one tap changer may move many taps.
- `advance` (timed): the clock moves on by a step, the circuit is solved, and what is due by then acts; a request made
  in this step acts in a later one, unless its delay is zero. One tap at a time.

A *solver* is a function `(grid, point) -> (point, flow)`: the power flow of an operating point, which may also set what
fast local controls (inverters) do. `power_flow` is the plain one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.control import capacitors, regulators
from gridjax.control.capacitors import Banks, CapacitorControls
from gridjax.control.meters import Meters, Workshop, read
from gridjax.control.regulators import Regulators, TapChangers
from gridjax.feeder import Feeder
from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow.solve import PowerFlow, solve

Solver = Callable[[Grid, OperatingPoint], tuple[OperatingPoint, PowerFlow]]
SOON_S = 1e-4  # what is due within this time is due: clocks are sums of rounded steps


@flax.struct.dataclass
class Switching:
    """The settings of a feeder's regulators and capacitor controls.

    Attributes:
      regulators, capacitors: as named.
      meters: what they measure beside voltages.
      rounds: most power flows of a `settle` or `advance`; a scenario that needs more is left where it is then.
    """

    regulators: Regulators
    capacitors: CapacitorControls
    meters: Meters
    rounds: int = flax.struct.field(pytree_node=False, default=60)


@flax.struct.dataclass
class SwitchingState:
    """Where the devices are and which requests are pending.

    Attributes:
      regulators: tap positions and requests.
      capacitors: steps in service and requests.
      settled: False where the last `settle` or `advance` ended with work to do: the power flow did not converge, or
        the controls hunted until the limit of rounds.
      rounds: power flows that it took.
    """

    regulators: TapChangers
    capacitors: Banks
    settled: jax.Array
    rounds: jax.Array


def power_flow(grid: Grid, point: OperatingPoint) -> tuple[OperatingPoint, PowerFlow]:
    """The solver without local controls."""
    return point, solve(grid, point)


def switching(feeder: Feeder, grid: Grid) -> Switching:
    """The regulators and capacitor controls of a feeder.

    Args:
      feeder: the tables.
      grid: compiled from it; the settings take its precision.

    Raises:
      ValueError: settings that make no sense, or something that cannot be measured; the message names the control and
        the cure.
    """
    if len(feeder.node_names) != grid.shape.nodes or len(feeder.regulators) != grid.shape.regulators:
        raise ValueError(f"the grid was not compiled from the feeder {feeder.name!r}: compile it anew")
    dtype, workshop = grid.node_volts.dtype, Workshop(feeder)
    taps = regulators.regulators(feeder, workshop, dtype)
    banks = capacitors.capacitor_controls(feeder, workshop, dtype)
    return Switching(regulators=taps, capacitors=banks, meters=workshop.finish(dtype))


def at_rest(switching: Switching, point: OperatingPoint) -> SwitchingState:
    """The devices as they are in an operating point, without requests.

    Taps between positions count as the nearest position; of a controlled bank all steps up to the last in service do.
    """
    point = jax.lax.stop_gradient(point)
    return SwitchingState(
        regulators=regulators.at_position(switching.regulators, point.tap),
        capacitors=capacitors.as_they_are(switching.capacitors, point.capacitor),
        settled=jnp.ones((), bool),
        rounds=jnp.zeros((), jnp.int32),
    )


def switched(point: OperatingPoint, switching: Switching, state: SwitchingState) -> OperatingPoint:
    """The point with the taps and the controlled capacitor steps of the state."""
    tap = regulators.ratios(switching.regulators, state.regulators.position).astype(point.tap.dtype)
    steps = capacitors.in_service(switching.capacitors, state.capacitors, point.capacitor)
    return dataclasses.replace(point, tap=tap, capacitor=steps)


def operations(before: SwitchingState, after: SwitchingState) -> tuple[jax.Array, jax.Array]:
    """What has been moved between two states of one history.

    Returns:
      Taps moved by each regulator (regulators,), and switchings of each controlled bank (controls,).
    """
    taps = after.regulators.moves - before.regulators.moves
    return taps, after.capacitors.operations - before.capacitors.operations


def settle(
    grid: Grid,
    point: OperatingPoint,
    switching: Switching,
    state: SwitchingState,
    solver: Solver = power_flow,
    *,
    seconds: jax.Array | float = 0.0,
    hour: jax.Array | float | None = None,
    differentiable: bool = True,
) -> tuple[OperatingPoint, PowerFlow, SwitchingState]:
    """Lets the controls act until none wants to, while time stands still (OpenDSS's static mode).

    Args:
      grid: a compiled feeder.
      point: what is asked of it; its taps and controlled capacitor steps do not matter.
      switching: its controls.
      state: where they are.
      solver: `(grid, point) -> (point, flow)`.
      seconds: time since the state was reached, by which dead times are shorter now.
      hour: time of the day, 24.0 at midnight; needed by time controls.
      differentiable: False saves one power flow and gives the result no derivatives. Static.

    Returns:
      The point with the taps and capacitor steps, and with what the solver changed; its power flow; the new state.

    Raises:
      ValueError: there are time controls, and no `hour`.

    Guarantees:
      Taps and steps have no derivatives; the power flow has, and the point where the solver gives it any, at those
      taps and steps. In a scenario whose power flow does not converge nothing switches any more. Under `vmap` no
      scenario depends on another.
    """
    state = _later(switching, state, seconds)
    return _repeat(grid, point, switching, state, solver, hour_of(switching, hour), False, differentiable)


def advance(
    grid: Grid,
    point: OperatingPoint,
    switching: Switching,
    state: SwitchingState,
    seconds: jax.Array | float,
    solver: Solver = power_flow,
    *,
    hour: jax.Array | float | None = None,
    differentiable: bool = True,
) -> tuple[OperatingPoint, PowerFlow, SwitchingState]:
    """One step of time with delays, dead times and one tap at a time (OpenDSS's time mode).

    Args:
      grid: a compiled feeder.
      point: what is asked of it after the step; its taps and controlled capacitor steps do not matter.
      switching: its controls.
      state: where they were before the step.
      seconds: the step's length.
      solver: `(grid, point) -> (point, flow)`.
      hour: time of the day after the step, 24.0 at midnight; needed by time controls.
      differentiable: as in `settle`. Static.

    Returns:
      As `settle`, after the step.

    Raises:
      ValueError: there are time controls, and no `hour`.

    Guarantees:
      As `settle`.
    """
    state = _later(switching, state, seconds)
    return _repeat(grid, point, switching, state, solver, hour_of(switching, hour), True, differentiable)


def hour_of(switching: Switching, hour: jax.Array | float | None) -> jax.Array:
    """The hour of the day in (0, 24]; any, where no control goes by it.

    Raises:
      ValueError: there are time controls, and `hour` is None.
    """
    if hour is None and "time" in switching.capacitors.kinds:
        raise ValueError("a capacitor control goes by the time of day: give `hour`")
    return capacitors.hour_of_day(jnp.asarray(0.0 if hour is None else hour, switching.capacitors.on.dtype))


def _later(switching: Switching, state: SwitchingState, seconds: jax.Array | float) -> SwitchingState:
    """The state with all its clocks moved on."""
    elapsed = jnp.asarray(seconds, switching.regulators.step.dtype)
    taps, banks = state.regulators, state.capacitors
    return dataclasses.replace(
        state,
        regulators=dataclasses.replace(taps, due=taps.due - elapsed, turn_due=taps.turn_due - elapsed),
        capacitors=dataclasses.replace(banks, due=banks.due - elapsed, since_open=banks.since_open + elapsed),
    )


def _act(switching: Switching, state: SwitchingState, timed: bool) -> tuple[SwitchingState, jax.Array]:
    """What is due acts; also whether anything was. `timed`: what is due by now, else what is due first."""
    taps, banks = state.regulators, state.capacitors
    first = jnp.minimum(regulators.next_due(taps), capacitors.next_due(banks))
    until = jnp.asarray(SOON_S, first.dtype) if timed else jnp.where(jnp.isfinite(first), first, -jnp.inf)
    taps = regulators.act(switching.regulators, taps, until, timed)
    banks = capacitors.act(switching.capacitors, banks, until)
    return dataclasses.replace(state, regulators=taps, capacitors=banks), first <= until


def _repeat(
    grid: Grid,
    point: OperatingPoint,
    switching: Switching,
    state: SwitchingState,
    solver: Solver,
    hour: jax.Array,
    timed: bool,
    differentiable: bool,
) -> tuple[OperatingPoint, PowerFlow, SwitchingState]:
    """Power flows, samples and actions until nothing acts."""
    fixed = jax.lax.stop_gradient((grid, point, switching, state, hour))
    at_grid, at_point, settings, start, at_hour = fixed

    def body(carry):
        state, _, _, count = carry
        solved, flow = solver(at_grid, switched(at_point, settings, state))
        reading = read(settings.meters, at_grid, solved, flow)
        looked = dataclasses.replace(
            state,
            regulators=regulators.sample(settings.regulators, state.regulators, reading),
            capacitors=capacitors.sample(settings.capacitors, state.capacitors, reading, at_hour),
        )
        acted, more = _act(settings, looked, timed)
        new = jax.tree.map(lambda a, b: jnp.where(flow.converged, a, b), acted, state)
        new = dataclasses.replace(new, settled=flow.converged & ~more, rounds=count + 1)
        return new, flow.converged & more, None if differentiable else (solved, flow), count + 1

    kept = None
    if not differentiable:
        shapes = jax.eval_shape(lambda s: solver(at_grid, switched(at_point, settings, s)), start)
        kept = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    begin = (start, jnp.ones((), bool), kept, jnp.zeros((), jnp.int32))
    state, _, kept, _ = jax.lax.while_loop(lambda c: c[1] & (c[3] < switching.rounds), body, begin)
    if kept is not None:
        return *kept, state
    solved, flow = solver(grid, switched(point, settings, state))
    return solved, flow, state
