"""Control of distributed energy resources: photovoltaic inverters, batteries and electric cars on any feeder.

A day runs from noon to noon, so that the cars that come in the evening leave within it. In each step of h hours the
action says, for every device, a number from -1 to 1: the reactive power of an inverter over what its rating leaves
beside its active power; how much of its available power it feeds in (1: all); a battery's power over its rating
(1: discharge); a car's charging over its charger's power (1: full). Then the loads, the sun and the price move on, the
power flow is solved, and with P the source's power in kW (import positive)

    reward = - h (price max(P, 0) - export_share price max(-P, 0)) - curtail_price curtailed kWh
             - undelivered_price undelivered kWh - wear - (at the end) price_mean (stored at the start - stored now)

in money. Voltages beyond their limits (summed over nodes, pu) and currents beyond the ratings (summed over elements,
per unit of the rating) are the constraints. Curtailment has its price because, unpriced, curtailing everything is the
best answer to any voltage limit.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.control.charging import ChargingState, Sessions, charge
from gridjax.control.charging import place as place_cars
from gridjax.control.storage import Power, Storages, StorageState, initial, operate
from gridjax.control.storage import place as place_batteries
from gridjax.env.environment import SWEEPS, Environment, Outcome
from gridjax.grid import Grid, OperatingPoint
from gridjax.powerflow import results
from gridjax.powerflow.solve import PowerFlow, solve
from gridjax.profiles import Profiles, at

START_HOUR = 12.0
FEATURES = (
    "inverter", "battery", "car", "voltage", "mean voltage of neighbours", "lowest of neighbours",
    "highest of neighbours", "power over rating", "state of charge", "hours left", "price", "time sine", "time cosine",
)  # fmt: skip


@flax.struct.dataclass
class Tariff:
    """Money: `price` (episodes, steps) per kWh bought, and the numbers () of the reward."""

    price: jax.Array
    export_share: jax.Array
    curtail_price: jax.Array
    undelivered_price: jax.Array


@flax.struct.dataclass
class DerParams:
    """What may vary by scenario.

    Attributes:
      grid: the feeder.
      days: profiles with a leading axis (episodes, steps); photovoltaics' generation is what is available.
      cars: sessions with a leading axis (episodes,), on a clock that starts at midnight of the first day.
      batteries: their settings.
      pv_row: (inverters,) where they stand in `OperatingPoint.generation_kw`.
      pv_kva: (inverters,) ratings.
      tariff: money.
      low: (nodes,) voltage limits in per unit.
      high: (nodes,) likewise.
      place: (devices, 3) the nodes of each device's terminal, repeated where there are fewer.
      neighbour: (devices, neighbours) the nearest devices along the lines.
      hours: () length of a step.
    """

    grid: Grid
    days: Profiles
    cars: Sessions
    batteries: Storages
    pv_row: jax.Array
    pv_kva: jax.Array
    tariff: Tariff
    low: jax.Array
    high: jax.Array
    place: jax.Array
    neighbour: jax.Array
    hours: jax.Array


@flax.struct.dataclass
class DerState:
    """An episode's state.

    Attributes:
      episode: () which day.
      t: () steps made.
      storage: the batteries' energies.
      charging: the cars' clock and energies.
      v: (nodes,) voltage magnitudes in per unit.
      power: (devices,) what each delivered over its rating in the last step; cars count what they draw.
      source_kw: () import in the last step.
    """

    episode: jax.Array
    t: jax.Array
    storage: StorageState
    charging: ChargingState
    v: jax.Array
    power: jax.Array
    source_kw: jax.Array


@dataclasses.dataclass(frozen=True)
class DerControl(Environment):
    """The task; make one with `gridjax.env.der_tasks.der_control`.

    Attributes:
      inverters: names.
      batteries: names.
      cars: names.
      nodes: names.
    """

    inverters: tuple[str, ...]
    batteries: tuple[str, ...]
    cars: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def constraints(self) -> tuple[str, ...]:
        """Voltages and currents beyond their limits."""
        return ("voltage violation, pu", "overload, pu")

    @property
    def devices(self) -> tuple[str, ...]:
        """Inverters, batteries and cars, in this order."""
        return self.inverters + self.batteries + self.cars

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Voltages, powers, states of charge, what cars lack, the hours they stay, the sun, load, price and time."""
        return (
            *(f"voltage {name}" for name in self.nodes),
            *(f"power {name}" for name in self.devices),
            *(f"available {name}" for name in self.inverters),
            *(f"state of charge {name}" for name in self.batteries),
            *(f"share delivered {name}" for name in self.cars),
            *(f"days left {name}" for name in self.cars),
            "load level", "price", "time sine", "time cosine",
        )  # fmt: skip

    @property
    def action_size(self) -> int:
        """Two numbers for each inverter (reactive power, share fed in), one for each battery and car."""
        return 2 * len(self.inverters) + len(self.batteries) + len(self.cars)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Reactive power and share fed in of the inverters, power of the batteries, charging of the cars."""
        kinds = {
            "reactive power": self.inverters, "share fed in": self.inverters, "power": self.batteries,
            "charging": self.cars,
        }  # fmt: skip
        return tuple(f"{kind} {name}" for kind, names in kinds.items() for name in names)

    @property
    def action_counts(self) -> tuple[int, ...]:
        """All are numbers."""
        return (0,) * self.action_size

    def begin(self, key: jax.Array, params: DerParams) -> DerState:
        """Draws a day; inverters feed in what they have, batteries idle at their initial energy, no car has come."""
        episode = jax.random.randint(key, (), 0, params.days.hour.shape[0])
        dtype = params.grid.base_va.dtype
        cars = jax.tree.map(lambda a: a[episode], params.cars)
        state = DerState(
            episode=episode,
            t=jnp.zeros((), jnp.int32),
            storage=initial(params.batteries),
            charging=ChargingState(jnp.asarray(START_HOUR, dtype), jnp.zeros_like(cars.wanted_kwh)),
            v=jnp.zeros(len(self.nodes), dtype),
            power=jnp.zeros(len(self.devices), dtype),
            source_kw=jnp.zeros((), dtype),
        )
        point, *_, power = self.act(state, self.nothing(), params)
        flow = solve(params.grid, point, max_iterations=SWEEPS)
        source = jnp.sum(results.source_power(params.grid, point, flow)).real
        v, source = (jnp.where(flow.converged, a, jnp.nan) for a in (jnp.abs(flow.v), source))
        return dataclasses.replace(state, v=v, power=power, source_kw=source)

    def nothing(self) -> jax.Array:
        """The action that controls nothing: all fed in at unit power factor, batteries idle, cars at full power."""
        pv, battery, car = len(self.inverters), len(self.batteries), len(self.cars)
        return jnp.concatenate([jnp.zeros(pv), jnp.ones(pv), jnp.zeros(battery), jnp.ones(car)])

    def _now(self, state: DerState, params: DerParams) -> Profiles:
        """The coming step's profiles; at the end those of the last step."""
        t = jnp.minimum(state.t, self.horizon - 1)
        return jax.tree.map(lambda a: a[state.episode, t], params.days)

    def act(self, state: DerState, action: jax.Array, params: DerParams):
        """The coming step's point, what the devices' energies become, their books, curtailed kW, power over rating."""
        pv, n = len(self.inverters), len(self.batteries)
        point = at(params.grid.nominal, self._now(state, params))
        action = jnp.clip(action.astype(point.load_kw.dtype), -1.0, 1.0)
        reactive, fed, battery, car = jnp.split(action, [pv, 2 * pv, 2 * pv + n])
        available = point.generation_kw[params.pv_row]
        kw = available * (fed + 1) / 2
        square = jnp.maximum(params.pv_kva**2 - kw**2, 1e-12)
        kvar = reactive * jnp.sqrt(square)
        point = dataclasses.replace(
            point,
            generation_kw=point.generation_kw.at[params.pv_row].set(kw),
            generation_kvar=point.generation_kvar.at[params.pv_row].set(kvar),
        )
        request = Power(battery * params.batteries.kw_rated, jnp.zeros_like(battery))
        given, storage, stored = operate(params.batteries, state.storage, request, params.hours)
        point = place_batteries(point, params.batteries, given)
        cars = jax.tree.map(lambda a: a[state.episode], params.cars)
        drawn, charging, delivered = charge(cars, state.charging, (car + 1) / 2 * cars.kw, params.hours)
        point = place_cars(point, cars, drawn)
        power = jnp.concatenate([kw / params.pv_kva, given.kw / params.batteries.kw_rated, drawn / cars.kw])
        return point, storage, charging, (stored, delivered), available - kw, power

    def advance(
        self, key: jax.Array, state: DerState, action: jax.Array, params: DerParams
    ) -> tuple[DerState, Outcome]:
        """Sets the devices, lets loads, sun and price move on, and solves."""
        del key
        point, storage, charging, books, curtailed, power = self.act(state, action, params)
        flow = solve(params.grid, point, max_iterations=SWEEPS)
        source = jnp.sum(results.source_power(params.grid, point, flow)).real
        new = dataclasses.replace(
            state, t=state.t + 1, storage=storage, charging=charging, v=jnp.abs(flow.v), power=power, source_kw=source
        )
        late = new.t >= self.horizon
        reward, info = self._reward(state, new, books, curtailed, late, params)
        cost = self._cost(point, flow, new.v, params)
        info["loss_kw"] = results.losses(params.grid, point, flow).real
        return new, Outcome(reward, cost, flow.converged, jnp.zeros((), bool), late, info)

    def _reward(self, state, new, books, curtailed, late, params):
        stored, delivered = books
        tariff, hours = params.tariff, params.hours
        price = tariff.price[state.episode, jnp.minimum(state.t, self.horizon - 1)]
        bought, sold = jnp.maximum(new.source_kw, 0.0), jnp.maximum(-new.source_kw, 0.0)
        energy = hours * price * (bought - tariff.export_share * sold)
        curtailed_kwh = hours * jnp.sum(curtailed)
        undelivered = jnp.sum(delivered.undelivered_kwh)
        wear = jnp.sum(stored.wear_cost)
        taken = jnp.sum(initial(params.batteries).kwh - new.storage.kwh)
        rest = jnp.where(late, jnp.mean(tariff.price[state.episode]) * taken, 0.0)
        reward = -energy - tariff.curtail_price * curtailed_kwh - tariff.undelivered_price * undelivered - wear - rest
        info = {
            "energy_cost": energy, "curtailed_kwh": curtailed_kwh, "undelivered_kwh": undelivered,
            "wear_cost": wear, "source_kw": new.source_kw,
        }  # fmt: skip
        return reward, info

    def _cost(self, point: OperatingPoint, flow: PowerFlow, v: jax.Array, params: DerParams) -> jax.Array:
        voltage = jnp.sum(jnp.maximum(v - params.high, 0.0) + jnp.maximum(params.low - v, 0.0))
        loads = results.loading(params.grid, point, flow)
        overload = sum((jnp.sum(jnp.maximum(a - 1.0, 0.0)) for a in loads.values()), jnp.zeros_like(voltage))
        return jnp.stack([voltage, overload])

    def _clock(self, state: DerState, params: DerParams) -> tuple[jax.Array, jax.Array]:
        angle = 2 * jnp.pi * (START_HOUR + state.t * params.hours) / 24
        return jnp.sin(angle), jnp.cos(angle)

    def _delivered(self, state: DerState, params: DerParams) -> tuple[jax.Array, jax.Array]:
        """Each car's share delivered (1 where nothing is wanted), and the hours that it still stays."""
        cars = jax.tree.map(lambda a: a[state.episode], params.cars)
        wants = cars.wanted_kwh > 0
        share = jnp.where(wants, state.charging.kwh / jnp.where(wants, cars.wanted_kwh, 1.0), 1.0)
        here = (cars.arrival_hour <= state.charging.hour) & (cars.departure_hour > state.charging.hour)
        return share, jnp.where(here, cars.departure_hour - state.charging.hour, 0.0)

    def observe(self, state: DerState, params: DerParams) -> jax.Array:
        """As `observation_names` says; the sun, the load and the price are those of the coming step."""
        now = self._now(state, params)
        share, left = self._delivered(state, params)
        price = params.tariff.price[state.episode, jnp.minimum(state.t, self.horizon - 1)]
        level = jnp.sum(now.load_kw) / jnp.sum(params.grid.nominal.load_kw)
        charge_state = state.storage.kwh / params.batteries.kwh_rated
        available = now.generation_kw[params.pv_row] / params.pv_kva
        rest = jnp.stack([level, price, *self._clock(state, params)])
        return jnp.concatenate([state.v, state.power, available, charge_state, share, left / 24, rest])

    def observe_devices(self, state: DerState, params: DerParams) -> jax.Array:
        """What each device knows by itself and from its neighbours, (devices, features), as `FEATURES` says.

        It is the same for every device and every feeder, so that one policy can serve all of them.
        """
        now = self._now(state, params)
        share, left = self._delivered(state, params)
        pv, n, cars = len(self.inverters), len(self.batteries), len(self.cars)
        own = jnp.mean(state.v[params.place], axis=1)
        near = own[params.neighbour]
        kinds = jnp.repeat(
            jnp.eye(3, dtype=own.dtype), jnp.array([pv, n, cars]), axis=0, total_repeat_length=pv + n + cars
        )
        available = now.generation_kw[params.pv_row] / params.pv_kva
        power = jnp.concatenate([available, state.power[pv:]])
        charge_state = state.storage.kwh / params.batteries.kwh_rated
        charged = jnp.concatenate([jnp.zeros(pv, own.dtype), charge_state, share])
        hours = jnp.concatenate([jnp.zeros(pv + n, own.dtype), left / 24])
        price = params.tariff.price[state.episode, jnp.minimum(state.t, self.horizon - 1)]
        common = jnp.stack([price, *self._clock(state, params)])
        columns = [own, near.mean(axis=1), near.min(axis=1), near.max(axis=1), power, charged, hours]
        common = jnp.broadcast_to(common[None], (pv + n + cars, 3))
        return jnp.concatenate([kinds, jnp.stack(columns, axis=1), common], axis=1)

    def from_devices(self, actions: jax.Array) -> jax.Array:
        """The action from two numbers for each device, (devices, 2); batteries and cars use the first."""
        pv = len(self.inverters)
        return jnp.concatenate([actions[:pv, 0], actions[:pv, 1], actions[pv:, 0]])
