"""Quasi-static time series: a scan of controls and power flows over time (R. C. Dugan, IEEE PES GM 2013).

At each step, of equal length h:

1. the profiles give loads, generation and source voltages; a battery's entry of the generation is what is wanted of it;
2. batteries give what their energy allows (`gridjax.control.storage`);
3. inverters settle with the power flow (`gridjax.control.regulation`);
4. regulators and capacitor controls act: in mode "static" until none wants to, in mode "time" for as long as the step
   lasts (`gridjax.control.switching`);
5. a record is kept of the solved step, and the controls' state goes on to the next.

Energies are sums of the steps' powers times h.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from gridjax.control import storage as storage_control
from gridjax.control import switching as switching_control
from gridjax.control.regulation import regulate
from gridjax.control.settings import Inverters
from gridjax.control.storage import Storages, StorageState
from gridjax.control.switching import Switching, SwitchingState
from gridjax.extremes import largest, smallest
from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow import results
from gridjax.powerflow.solve import PowerFlow, solve
from gridjax.profiles import Profiles, Shapes, at, steps, window

MODES = ("static", "time")


@flax.struct.dataclass
class Controls:
    """Which controls act; None for those that do not."""

    switching: Switching | None = None
    inverters: Inverters | None = None
    storages: Storages | None = None


@flax.struct.dataclass
class ControlState:
    """What the controls carry from one step to the next; None for those that do not act."""

    switching: SwitchingState | None = None
    storage: StorageState | None = None


@flax.struct.dataclass
class Record:
    """One step's figures, or with a leading axis (steps,) all steps'.

    Attributes:
      hour: () since the start, from the profiles.
      source_kva: (sources,) complex, delivered by each source.
      losses_kva: () complex, in all passive elements.
      load_kw, generation_kw: () asked of all loads together, and of all generation entries.
      v_low, v_high: () the lowest and highest voltage magnitude in per unit.
      nodes_low, nodes_high: () nodes below 0.95 and above 1.05 pu.
      tap: (regulators,) turns ratios.
      capacitor: (steps of banks,) 1.0 in service.
      battery_kw: (batteries,) at the terminals, positive when injected.
      battery_kwh: (batteries,) at the step's end.
      converged: () whether the power flow was solved; where it was not, the other figures are of its last iterate.
    """

    hour: jax.Array
    source_kva: jax.Array
    losses_kva: jax.Array
    load_kw: jax.Array
    generation_kw: jax.Array
    v_low: jax.Array
    v_high: jax.Array
    nodes_low: jax.Array
    nodes_high: jax.Array
    tap: jax.Array
    capacitor: jax.Array
    battery_kw: jax.Array
    battery_kwh: jax.Array
    converged: jax.Array


def at_start(grid: Grid, controls: Controls, point: OperatingPoint | None = None) -> ControlState:
    """The controls' state before the first step: taps and capacitors of a point, batteries as the feeder has them."""
    switching, storages = controls.switching, controls.storages
    point = grid.nominal if point is None else point
    return ControlState(
        switching=None if switching is None else switching_control.at_rest(switching, point),
        storage=None if storages is None else storage_control.initial(storages),
    )


def step(
    grid: Grid, point: OperatingPoint, controls: Controls, state: ControlState, hours: jax.Array, hour: jax.Array,
    mode: str = "static",
    differentiable: bool = True,
) -> tuple[OperatingPoint, PowerFlow, ControlState]:  # fmt: skip
    """One step of the series.

    Args:
      grid: the feeder.
      point: what is asked; the switching controls' taps and capacitors come from their state.
      controls: those that act.
      state: theirs.
      hours: length of the step.
      hour: time of day, for controls by the clock.
      mode: "static" or "time". Static.
      differentiable: False saves the switching controls a power flow and gives the result no derivatives. Static.

    Returns:
      The point with what the controls made of it, its power flow, and the controls' state.
    """
    storage = state.storage
    if controls.storages is not None and storage is not None:
        rows = controls.storages.row
        wanted = storage_control.Power(point.generation_kw[rows], point.generation_kvar[rows])
        power, storage, _ = storage_control.operate(controls.storages, storage, wanted, hours)
        point = storage_control.place(point, controls.storages, power)

    def solver(grid: Grid, point: OperatingPoint) -> tuple[OperatingPoint, PowerFlow]:
        if controls.inverters is None:
            return point, solve(grid, point)
        return regulate(grid, point, controls.inverters)

    switching = state.switching
    if controls.switching is None or switching is None:
        point, flow = solver(grid, point)
    elif mode == "static":
        point, flow, switching = switching_control.settle(
            grid, point, controls.switching, switching, solver,
            seconds=3600 * hours, hour=hour, differentiable=differentiable,
        )  # fmt: skip
    else:
        point, flow, switching = switching_control.advance(
            grid, point, controls.switching, switching, 3600 * hours, solver,
            hour=hour, differentiable=differentiable,
        )  # fmt: skip
    return point, flow, ControlState(switching, storage)


Keep = Callable[[Grid, OperatingPoint, PowerFlow, ControlState, jax.Array], Any]


def summary(grid: Grid, point: OperatingPoint, flow: PowerFlow, state: ControlState, hour: jax.Array) -> Record:
    """The figures that `simulate` keeps of a step unless told otherwise."""
    v = jnp.abs(flow.v)
    batteries = jnp.zeros(0, v.dtype) if state.storage is None else state.storage.kwh
    first = point.generation_kw.shape[0] - batteries.shape[0]
    return Record(
        hour=hour,
        source_kva=results.source_power(grid, point, flow),
        losses_kva=results.losses(grid, point, flow),
        load_kw=jnp.sum(point.load_kw),
        generation_kw=jnp.sum(point.generation_kw),
        v_low=smallest(v),
        v_high=largest(v),
        nodes_low=jnp.sum(v < 0.95),
        nodes_high=jnp.sum(v > 1.05),
        tap=point.tap,
        capacitor=point.capacitor,
        battery_kw=point.generation_kw[first:],
        battery_kwh=batteries,
        converged=flow.converged,
    )


@functools.partial(jax.jit, static_argnames=("mode", "keep", "differentiable"))
def simulate(
    grid: Grid,
    profiles: Profiles | Shapes,
    controls: Controls | None = None,
    state: ControlState | None = None,
    *,
    hours: float | jax.Array = 1.0,
    mode: str = "static",
    keep: Keep = summary,
    differentiable: bool = True,
) -> tuple[Any, ControlState]:
    """Runs a feeder through time.

    For many scenarios, `jax.vmap` over any of the arguments; for runs whose profiles are long, `simulate_long`.

    Args:
      grid: the feeder.
      profiles: what is asked at each step, see `gridjax.profiles`.
      controls: those that act; None for no controls at all.
      state: theirs at the start; None is `at_start(grid, controls)`.
      hours: length of every step.
      mode: "static": regulators and capacitors settle in every step; "time": they act by their delays, for as long as a
        step lasts. Static.
      keep: `(grid, point, flow, state, hour) -> record` of a step; see `summary`. Static.
      differentiable: whether the result has derivatives, the decisions of switching controls being constants; without
        them, switching controls take one power flow a step less. Static.

    Returns:
      The records with a leading axis (steps,), and the controls' state at the end.

    Raises:
      ValueError: an unknown mode.

    Guarantees:
      A step whose power flow does not converge
      says so in its record; the run goes on with the next step.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown: choose one of {', '.join(MODES)}")
    controls = Controls() if controls is None else controls
    state = at_start(grid, controls) if state is None else state
    hours = jnp.asarray(hours, grid.base_va.dtype)

    def body(state, now):
        point = at(grid.nominal, now)
        point, flow, state = step(grid, point, controls, state, hours, now.hour, mode, differentiable)
        return state, keep(grid, point, flow, state, now.hour)

    state, records = jax.lax.scan(body, state, profiles)
    return records, state


def simulate_long(
    grid: Grid,
    profiles: Profiles | Shapes,
    controls: Controls | None = None,
    state: ControlState | None = None,
    *,
    part: int = 672,
    progress: bool = True,
    **options: Any,
) -> tuple[Any, ControlState]:
    """`simulate` part by part, with a progress bar on the terminal; only records and one part are in memory at a time.

    Args:
      grid: as in `simulate`.
      profiles: likewise.
      controls: likewise.
      state: likewise.
      **options: likewise: `hours`, `mode`, `keep`.
      part: steps that run in one compiled call.
      progress: whether to show the bar.

    Returns:
      As `simulate`, the records as NumPy arrays.
    """
    from rich.progress import track

    controls = Controls() if controls is None else controls
    now = at_start(grid, controls) if state is None else state
    total, whole = steps(profiles), cast(Any, profiles)
    parts = []
    starts = range(0, total, part)
    for start in track(starts, "time series", disable=not progress, transient=True):
        piece = window(whole, start, min(start + part, total))
        record, now = simulate(grid, piece, controls, now, differentiable=False, **options)
        parts.append(jax.tree.map(np.asarray, record))
    return jax.tree.map(lambda *p: np.concatenate(p), *parts), now


def energies(record: Record, hours: float | jax.Array = 1.0) -> dict[str, jax.Array]:
    """Totals of a run over its solved steps, and how many were not solved.

    `source` and `losses` are in kWh, `below_low` and `above_high` in node-hours; `tap_moves` counts changes of taps
    from one step to the next, `capacitor_moves` those of capacitor steps, `not_converged` steps.

    Args:
      record: with its leading axis (steps,).
      hours: length of every step.
    """
    solved = jnp.asarray(record.converged)
    moves = jnp.sum(jnp.abs(jnp.diff(record.tap, axis=0)) > 1e-9)
    switched = jnp.sum(jnp.abs(jnp.diff(record.capacitor, axis=0)) > 0.5)
    return {
        "source": hours * jnp.sum(record.source_kva.real, where=solved[:, None]),
        "losses": hours * jnp.sum(record.losses_kva.real, where=solved),
        "below_low": hours * jnp.sum(record.nodes_low, where=solved),
        "above_high": hours * jnp.sum(record.nodes_high, where=solved),
        "not_converged": jnp.sum(~solved),
        "tap_moves": moves,
        "capacitor_moves": switched,
    }
