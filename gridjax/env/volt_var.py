"""Volt-VAR control: capacitors, regulators and batteries against losses, voltage violations and wear.

One step is an hour (or `hours`) of a day whose loads follow an episode of multipliers. The action sets every capacitor,
every tap and every battery's power; then the loads move on and the power flow is solved. With the weights w

    reward = - w_loss min(max(loss / |source power|, 0), 1) - w_voltage violation
             - w_capacitor sum |change of state| - w_tap sum |change of position|
             - w_discharge sum max(P, 0)/P_max - w_energy sum |SoC - SoC_0|   (the last at the end of the day only)

This is the task of powergym (T.-H. Fan, X. Y. Lee and Y. Wang, "PowerGym: A reinforcement learning environment for
volt-var control in power distribution systems", L4DC 2022, eq. 1 to 4). Two modes:

- *clean*: every node's violation counts; batteries are `gridjax.control.storage`, at unit power factor, with
  efficiencies and reserve as in the feeder's table; the day starts with taps at neutral; the observation has the time
  and the load.
- *powergym*: what its code does, found by running it: only the worst phase of each bus counts, once above and once
  below; batteries are generators that give Q = P/pf with P, may start a step only as long as their energy lasts but
  are debited what the circuit really takes (a delta battery rated for another voltage delivers more than it is asked
  for), and their kWh are rounded to integers; taps start at their maximum, capacitors closed, batteries full, and the
  first observation is that of the day's last hour; 24 loads of the 8500 nodes follow no multiplier. Only the end of the
  day ends an episode.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

import gridjax.powerflow.results as results
from gridjax.control.storage import Power, Storages, StorageState, initial, operate, place
from gridjax.env.environment import SWEEPS, Environment, Outcome
from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow.solve import PowerFlow, solve

ACTIONS = ("discrete", "mixed", "continuous")
FEATURES = (
    "capacitor", "regulator", "battery", "voltage", "mean voltage of neighbours", "lowest of neighbours",
    "highest of neighbours", "position", "state of charge", "power over rating", "load level", "time sine",
    "time cosine",
)  # fmt: skip


@flax.struct.dataclass
class Weights:
    """Of the terms of the reward; see the module's text."""

    loss: jax.Array
    voltage: jax.Array
    capacitor: jax.Array
    tap: jax.Array
    discharge: jax.Array
    energy: jax.Array


@flax.struct.dataclass
class VoltVarParams:
    """What may vary by scenario.

    Attributes:
      grid: the feeder.
      multiplier: (episodes, steps, loads) of every load's rated active and reactive power.
      weights: of the reward's terms.
      low, high: () voltage limits in per unit.
      tap_low, tap_step: (regulators,) turns ratio of position 0, and of one position.
      regulator_place: (regulators,) where each of the feeder's regulators stands in an action.
      node_order: (nodes,) the nodes in the order of an observation.
      bus_nodes: (buses, phases) the nodes of each bus, the ground (one past the last) where there are fewer.
      batteries: storage settings (clean), one row a battery.
      battery_row: (batteries,) where they stand in `OperatingPoint.generation_kw`.
      battery_unit: (3, units) zone, slot and battery of each of their phases.
      gain: (batteries,) nominal power for each kW asked for; 1 but for powergym's wrongly rated ones.
      kvar_per_kw: (batteries,) reactive for active power; 0 but in powergym.
      hours: () length of a step.
      place: (devices, 3) the nodes of each device's terminal, repeated where there are fewer.
      neighbour: (devices, neighbours) the nearest devices along the lines.
    """

    grid: Grid
    multiplier: jax.Array
    weights: Weights
    low: jax.Array
    high: jax.Array
    tap_low: jax.Array
    tap_step: jax.Array
    regulator_place: jax.Array
    node_order: jax.Array
    bus_nodes: jax.Array
    batteries: Storages
    battery_row: jax.Array
    battery_unit: jax.Array
    gain: jax.Array
    kvar_per_kw: jax.Array
    hours: jax.Array
    place: jax.Array
    neighbour: jax.Array


@flax.struct.dataclass
class VoltVarState:
    """An episode's state.

    Attributes:
      episode, t: () which multipliers, and how many steps have been made.
      capacitor: (banks,) 1.0 where a bank is in service.
      position: (regulators,) taps, counted from the lowest.
      storage: the batteries' energy.
      start_kwh: (batteries,) at the episode's start.
      power: (batteries,) what the batteries really deliver over their rating.
      v: (nodes,) voltage magnitudes in per unit.
      level: () the loads' total over their rated total.
    """

    episode: jax.Array
    t: jax.Array
    capacitor: jax.Array
    position: jax.Array
    storage: StorageState
    start_kwh: jax.Array
    power: jax.Array
    v: jax.Array
    level: jax.Array


@dataclasses.dataclass(frozen=True)
class VoltVar(Environment):
    """The task; make one with `volt_var` or `powergym`.

    Attributes:
      actions: "discrete" (capacitors 0 or 1, taps and batteries by position), "mixed" (numbers in the same vector:
        capacitors and taps by position, batteries from -1, charging, to 1) or "continuous" (all from -1 to 1;
        capacitors and taps go to the nearest position, and derivatives pass as if they did not round).
      as_powergym: the mode.
      capacitors, regulators, batteries, nodes: names.
      tap_counts: positions of each regulator.
      battery_count: powers of a battery with discrete actions, odd.
      tolerance: of the power flows, see `gridjax.solve`.
    """

    actions: str
    as_powergym: bool
    capacitors: tuple[str, ...]
    regulators: tuple[str, ...]
    batteries: tuple[str, ...]
    nodes: tuple[str, ...]
    tap_counts: tuple[int, ...]
    battery_count: int
    tolerance: float

    @property
    def constraints(self) -> tuple[str, ...]:
        """One: how far voltages are beyond their limits, summed over nodes."""
        return ("voltage violation, pu",)

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Voltages, capacitors, taps, and each battery's state of charge and power; in clean mode time and load."""
        batteries = [f"{kind} {name}" for name in self.batteries for kind in ("state of charge", "power")]
        return (
            *(f"voltage {name}" for name in self.nodes),
            *(f"capacitor {name}" for name in self.capacitors),
            *(f"tap {name}" for name in self.regulators),
            *batteries,
            *(() if self.as_powergym else ("time of day", "load level")),
        )

    @property
    def action_size(self) -> int:
        """Capacitors, regulators and batteries, in this order."""
        return len(self.capacitors) + len(self.regulators) + len(self.batteries)

    @property
    def action_names(self) -> tuple[str, ...]:
        """The devices."""
        kinds = {"capacitor": self.capacitors, "tap": self.regulators, "battery": self.batteries}
        return tuple(f"{kind} {name}" for kind, names in kinds.items() for name in names)

    @property
    def devices(self) -> tuple[str, ...]:
        """Capacitors, regulators and batteries, in this order."""
        return self.action_names

    @property
    def device_numbers(self) -> int:
        """One number of each device's own action."""
        return 1

    @property
    def action_counts(self) -> tuple[int, ...]:
        """Positions of each device; 0 where the action is a number from -1 to 1."""
        if self.actions == "continuous":
            return (0,) * self.action_size
        battery = self.battery_count if self.actions == "discrete" else 0
        return (2,) * len(self.capacitors) + self.tap_counts + (battery,) * len(self.batteries)

    def begin(self, key: jax.Array, params: VoltVarParams) -> VoltVarState:
        """Draws a day; taps at neutral (powergym: highest), capacitors closed, batteries as their table says."""
        episode = jax.random.randint(key, (), 0, params.multiplier.shape[0])
        dtype = params.grid.base_va.dtype
        counts = jnp.asarray(self.tap_counts, dtype)
        storage = initial(params.batteries)
        idle = jnp.zeros(len(self.batteries), dtype)
        state = VoltVarState(
            episode=episode,
            t=jnp.zeros((), jnp.int32),
            capacitor=jnp.ones(len(self.capacitors), dtype),
            position=counts - 1 if self.as_powergym else jnp.round((1 - params.tap_low) / params.tap_step),
            storage=storage,
            start_kwh=storage.kwh,
            power=idle,
            v=jnp.zeros(len(self.nodes), dtype),
            level=jnp.ones((), dtype),
        )
        before = self.horizon - 1 if self.as_powergym else 0
        point = self.point(dataclasses.replace(state, t=jnp.asarray(before)), params, idle)
        flow = solve(params.grid, point, tol=self.tolerance, max_iterations=SWEEPS)
        v = jnp.where(flow.converged, jnp.abs(flow.v), jnp.nan)
        return dataclasses.replace(state, v=v, level=self._level(state, params))

    def point(self, state: VoltVarState, params: VoltVarParams, kw: jax.Array) -> OperatingPoint:
        """The operating point of the coming step, with the batteries delivering `kw`."""
        grid, nominal = params.grid, params.grid.nominal
        factor = params.multiplier[state.episode, jnp.minimum(state.t, params.multiplier.shape[1] - 1)]
        rows, kw = params.battery_row, kw * params.gain
        return dataclasses.replace(
            nominal,
            load_kw=nominal.load_kw * factor,
            load_kvar=nominal.load_kvar * factor,
            generation_kw=nominal.generation_kw.at[rows].set(kw),
            generation_kvar=nominal.generation_kvar.at[rows].set(kw * params.kvar_per_kw),
            tap=(params.tap_low + state.position * params.tap_step)[params.regulator_place],
            capacitor=state.capacitor[grid.step_bank],
        )

    def _level(self, state: VoltVarState, params: VoltVarParams) -> jax.Array:
        rated = params.grid.nominal.load_kw
        t = jnp.minimum(state.t, params.multiplier.shape[1] - 1)
        return jnp.sum(params.multiplier[state.episode, t] * rated) / jnp.sum(rated)

    def _targets(self, action: jax.Array, params: VoltVarParams) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Capacitor states, tap positions and the batteries' shares of their power that an action asks for."""
        dtype = params.grid.base_va.dtype
        action = action.astype(dtype)
        caps, taps = len(self.capacitors), len(self.regulators)
        capacitor, position, battery = action[:caps], action[caps : caps + taps], action[caps + taps :]
        top = jnp.asarray(self.tap_counts, dtype) - 1
        if self.actions == "continuous":
            capacitor, position = (capacitor + 1) / 2, (position + 1) / 2 * top
        if self.actions == "discrete":
            middle = self.battery_count // 2
            battery = (jnp.clip(jnp.round(battery), 0, self.battery_count - 1) - middle) / middle
        capacitor = _nearest(jnp.clip(capacitor, 0, 1))
        return capacitor, _nearest(jnp.clip(position, 0, top)), jnp.clip(battery, -1.0, 1.0)

    def advance(
        self, key: jax.Array, state: VoltVarState, action: jax.Array, params: VoltVarParams
    ) -> tuple[VoltVarState, Outcome]:
        """Sets the devices, lets the loads move on, and solves."""
        del key
        grid, hours = params.grid, params.hours
        capacitor, position, share = self._targets(action, params)
        moved = jnp.sum(jnp.abs(capacitor - state.capacitor)), jnp.sum(jnp.abs(position - state.position))
        new = dataclasses.replace(state, capacitor=capacitor, position=position)
        if self.as_powergym:
            kw = self._allowed(share, state, params)
            point = self.point(new, params, kw)
            flow = solve(grid, point, tol=self.tolerance, max_iterations=SWEEPS)
            storage, power = self._debit(state, params, point, flow)
        else:
            request = Power(share * params.batteries.kw_rated, jnp.zeros_like(share))
            given, storage, _ = operate(params.batteries, state.storage, request, hours)
            kw = given.kw
            point = place(self.point(new, params, kw), params.batteries, given)
            flow = solve(grid, point, tol=self.tolerance, max_iterations=SWEEPS)
            power = kw / params.batteries.kw_rated
        t = state.t + 1
        new = dataclasses.replace(new, t=t, storage=storage, power=power, v=jnp.abs(flow.v))
        new = dataclasses.replace(new, level=self._level(new, params))
        late = t >= self.horizon
        reward, cost, info = self._reward(new, params, point, flow, moved, kw, late)
        return new, Outcome(reward, cost[None], flow.converged, jnp.zeros((), bool), late, info)

    def _reward(self, state, params, point, flow, moved, kw, late):
        grid, w = params.grid, params.weights
        loss = results.losses(grid, point, flow).real
        source = jnp.sum(results.source_power(grid, point, flow)).real
        ratio = jnp.clip(loss / jnp.abs(source), 0.0, 1.0)
        violation = self.violation(state.v, params)
        rated = params.batteries.kw_rated
        energy = jnp.sum(jnp.abs(state.storage.kwh - state.start_kwh) / params.batteries.kwh_rated)
        wear = w.capacitor * moved[0] + w.tap * moved[1] + w.discharge * jnp.sum(jnp.maximum(kw, 0.0) / rated)
        reward = -w.loss * ratio - w.voltage * violation - wear - jnp.where(late, w.energy * energy, 0.0)
        info = {
            "loss_kw": loss,
            "source_kw": source,
            "violation_pu": violation,
            "capacitor_moves": moved[0],
            "tap_moves": moved[1],
        }
        return reward, violation, info

    def violation(self, v: jax.Array, params: VoltVarParams) -> jax.Array:
        """How far voltages are beyond their limits, per unit, summed over nodes (powergym: the worst phases)."""
        if not self.as_powergym:
            return jnp.sum(jnp.maximum(v - params.high, 0.0) + jnp.maximum(params.low - v, 0.0))
        highest = jnp.max(jnp.append(v, -jnp.inf)[params.bus_nodes], axis=1)
        lowest = jnp.min(jnp.append(v, jnp.inf)[params.bus_nodes], axis=1)
        return jnp.sum(jnp.maximum(highest - params.high, 0.0) + jnp.maximum(params.low - lowest, 0.0))

    def _allowed(self, share: jax.Array, state: VoltVarState, params: VoltVarParams) -> jax.Array:
        """The power that the energy allows for the step as if the battery gave what it is asked for, kW."""
        b = params.batteries
        most, least = state.storage.kwh / params.hours, (state.storage.kwh - b.kwh_rated) / params.hours
        if self.actions != "discrete":
            return jnp.clip(share * b.kw_rated, jnp.minimum(least, 0.0), most)
        # The next position towards zero that the energy allows.
        middle = self.battery_count // 2
        unit = b.kw_rated / middle
        wanted = jnp.round(share * middle)
        over = jnp.ceil(jnp.maximum(wanted * unit - most, 0.0) / unit - 1e-4)
        under = jnp.ceil(jnp.maximum(least - wanted * unit, 0.0) / unit - 1e-4)
        return (wanted - over + under) * unit

    def _debit(
        self, state: VoltVarState, params: VoltVarParams, point: OperatingPoint, flow: PowerFlow
    ) -> tuple[StorageState, jax.Array]:
        """Energies after what the circuit really took, as whole kWh, and that power over the rating."""
        b = params.batteries
        zone, slot, owner = params.battery_unit
        drawn = results.unit_powers(params.grid, point, flow, zone, slot).real
        mine = owner[None] == jnp.arange(len(self.batteries))[:, None]
        kw = -jnp.sum(jnp.where(mine, drawn[None], 0.0), axis=1)
        kwh = _nearest(jnp.clip(state.storage.kwh - kw * params.hours, 0.0, b.kwh_rated))
        return StorageState(kwh), kw / b.kw_rated

    def observe(self, state: VoltVarState, params: VoltVarParams) -> jax.Array:
        """As `observation_names` says; taps as turns ratios."""
        tap = params.tap_low + state.position * params.tap_step
        charge = state.storage.kwh / params.batteries.kwh_rated
        batteries = jnp.stack([charge, state.power], axis=1).ravel()
        parts = [state.v[params.node_order], state.capacitor, tap, batteries]
        if not self.as_powergym:
            parts.append(jnp.stack([state.t / self.horizon, state.level]))
        return jnp.concatenate(parts)

    def observe_devices(self, state: VoltVarState, params: VoltVarParams) -> jax.Array:
        """What each device knows by itself and from its neighbours, (devices, features), as `FEATURES` says.

        It is the same for every device and every feeder, so that one policy can serve all of them. A position is that
        of a capacitor or tap over its highest.
        """
        counts = [len(self.capacitors), len(self.regulators), len(self.batteries)]
        dtype, total = state.v.dtype, sum(counts)
        own = jnp.mean(state.v[params.place], axis=1)
        near = own[params.neighbour]
        kinds = jnp.repeat(jnp.eye(3, dtype=dtype), jnp.array(counts), axis=0, total_repeat_length=total)
        top = jnp.asarray(self.tap_counts, dtype) - 1
        idle, still = jnp.zeros(counts[0] + counts[1], dtype), jnp.zeros(counts[2], dtype)
        position = jnp.concatenate([state.capacitor, state.position / top, still])
        charge = jnp.concatenate([idle, state.storage.kwh / params.batteries.kwh_rated])
        power = jnp.concatenate([idle, state.power])
        angle = 2 * jnp.pi * state.t * params.hours / 24
        common = jnp.broadcast_to(jnp.stack([state.level, jnp.sin(angle), jnp.cos(angle)])[None], (total, 3))
        columns = [own, near.mean(axis=1), near.min(axis=1), near.max(axis=1), position, charge, power]
        return jnp.concatenate([kinds, jnp.stack(columns, axis=1), common], axis=1)

    def from_devices(self, actions: jax.Array) -> jax.Array:
        """The action from a number from -1 to 1 for each device, (devices, 1), lowest to highest position."""
        top = jnp.asarray(self.action_counts, actions.dtype) - 1
        number = jnp.clip(actions[:, 0], -1.0, 1.0)
        position = jnp.round((number + 1) / 2 * top)
        chosen = jnp.where(top > 0, position, number)
        return chosen.astype(jnp.int32) if self.actions == "discrete" else chosen


def _nearest(x: jax.Array) -> jax.Array:
    """The nearest whole number, with the derivative of x itself."""
    return x + jax.lax.stop_gradient(jnp.round(x) - x)
