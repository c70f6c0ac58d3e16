"""An islanded feeder: a grid-forming unit, diesels, photovoltaics, batteries, and blocks of load that can be shed.

The only environment with a frequency: a feeder that is tied to the grid has the grid's. In each step of h hours the
action says, with numbers from -1 to 1, for every source its active power and its reactive power, for every block how
much of it is shed (above 0), and the grid-forming unit's voltage (within 5 % of the nominal one). All zeros is what
the plant does by itself:

    diesels        follow the forecast, in proportion to their ratings: P = S/sum S (load - photovoltaics - batteries
                   + gain (wanted - present state of charge of the grid-forming unit)), at the loads' power factor;
                   the action adds up to the rating; one that gives nothing stands still, without fuel and inertia
    photovoltaics  feed in what they have; below 0 the action curtails
    batteries      idle; the action is their power over the rating, 1: discharge

Reactive power is the action's share of what the rating leaves, on top of the diesels' own. Then loads and sun move on,
a disturbance may strike (a load step, the loss of a source, a cloud), and `gridjax.env.island` says what comes of it.
With fuel in litres after Skarstein and Uhlen (1989), the reward is in money

    reward = - fuel - sum over blocks of price times kWh not served - curtail_price curtailed kWh - wear
             - (at the end) store_price (stored at the start - stored now) - (a blackout) blackout_price

A blackout ends the episode: the frequency beyond the limits at which all units trip, the grid-forming unit overloaded,
empty or full. Constraints: the worst frequency beyond its band in the step; voltages and currents beyond their limits
in the state that the step ends in, the grid-forming unit's rating among them; and blackouts.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp

from gridjax.control.frequency import inertia
from gridjax.control.storage import Power, initial, operate
from gridjax.env.disturbances import Disturbances, strike
from gridjax.env.environment import Environment, Outcome
from gridjax.env.island import Island, Request, Settled, Stores, Trace, demand, network, ride, settle
from gridjax.env.lanes import pick
from gridjax.extremes import largest, smallest
from gridjax.grid import Grid
from gridjax.namespace import matmul
from gridjax.powerflow import results
from gridjax.profiles import Profiles, at

VOLTAGE_RANGE = 0.05  # of the grid-forming unit's set-point, both ways
FEATURES = (
    "diesel", "photovoltaics", "battery", "block", "voltage", "mean voltage of neighbours", "lowest of neighbours",
    "highest of neighbours", "power over rating", "state of charge", "in service", "grid-forming power",
    "grid-forming state of charge", "frequency lowest", "frequency highest", "load level", "time sine", "time cosine",
)  # fmt: skip


@flax.struct.dataclass
class Prices:
    """Money: for a litre, for a kWh not served (blocks,), curtailed, less in store at the end; for a blackout.

    `litres_kwh`, `litres_rated_h`: fuel for a kWh, and for a kW of rating and hour while a machine runs.
    """

    litre: jax.Array
    litres_kwh: jax.Array
    litres_rated_h: jax.Array
    unserved: jax.Array
    curtailed: jax.Array
    stored: jax.Array
    blackout: jax.Array


@flax.struct.dataclass
class Dispatch:
    """What the plant does by itself.

    Attributes:
      share: (1 + d) of the machines in the forecast; 0 for a battery inverter.
      gain_kw: for all of the state of charge.
      wanted: state of charge.
      kvar_per_kw: of diesels.
    """

    share: jax.Array
    gain_kw: jax.Array
    wanted: jax.Array
    kvar_per_kw: jax.Array


@flax.struct.dataclass
class MicrogridParams:
    """What may vary by scenario.

    Attributes:
      grid: the feeder, its source being the grid-forming unit.
      island: the plant.
      days: profiles with a leading axis (episodes, steps); photovoltaics' generation is what is available.
      dispatch: what the plant does by itself.
      prices: money.
      disturbances: what may strike.
      low, high: (nodes,) voltage limits in per unit.
      band_hz: () deviation of the frequency beyond which it violates its limit.
      nominal_hz: ().
      place: (devices, 3) the nodes at which each sees the voltage.
      neighbour: (devices, neighbours) the nearest devices along the lines.
      hours: () length of a step.
    """

    grid: Grid
    island: Island
    days: Profiles
    dispatch: Dispatch
    prices: Prices
    disturbances: Disturbances
    low: jax.Array
    high: jax.Array
    band_hz: jax.Array
    nominal_hz: jax.Array
    place: jax.Array
    neighbour: jax.Array
    hours: jax.Array


@flax.struct.dataclass
class MicrogridState:
    """An episode's state; after a blackout without voltage and power, its energies those when it came.

    Attributes:
      episode: () which day.
      t: () steps made.
      stores: energies.
      out_h: (n,) hours until a lost source is back.
      v: (nodes,) voltage magnitudes in per unit at the end of the step.
      power: (n,) kW over kVA of the sources there.
      own: (2,) active and reactive power of the grid-forming unit over its kVA there.
      served: (blocks,) share of each block that was served there.
      swing_hz: (2,) lowest and highest deviation of the frequency in the step.
    """

    episode: jax.Array
    t: jax.Array
    stores: Stores
    out_h: jax.Array
    v: jax.Array
    power: jax.Array
    own: jax.Array
    served: jax.Array
    swing_hz: jax.Array


@dataclasses.dataclass(frozen=True)
class Microgrid(Environment):
    """The task; make one with `gridjax.env.microgrid_tasks.microgrid`.

    Attributes:
      diesels: names.
      inverters: names of the photovoltaics.
      batteries: names.
      blocks: names, those of the least priority first.
      nodes: names.
    """

    diesels: tuple[str, ...]
    inverters: tuple[str, ...]
    batteries: tuple[str, ...]
    blocks: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def constraints(self) -> tuple[str, ...]:
        """Frequency, voltages, currents; blackouts."""
        return ("frequency violation, Hz", "voltage violation, pu", "overload, pu", "blackout")

    @property
    def sources(self) -> tuple[str, ...]:
        """Diesels, photovoltaics and batteries, in this order; without the grid-forming unit."""
        return self.diesels + self.inverters + self.batteries

    @property
    def devices(self) -> tuple[str, ...]:
        """Sources and blocks."""
        return self.sources + self.blocks

    @property
    def observation_names(self) -> tuple[str, ...]:
        """As `observe` gives them; the sun, the load and the time are those of the coming step."""
        return (
            *(f"voltage {name}" for name in self.nodes),
            *(f"power {name}" for name in self.sources),
            "grid-forming power", "grid-forming reactive power", "state of charge grid-forming",
            *(f"available {name}" for name in self.inverters),
            *(f"state of charge {name}" for name in self.batteries),
            *(f"in service {name}" for name in self.sources),
            *(f"served {name}" for name in self.blocks),
            "frequency lowest", "frequency highest", "load level", "time sine", "time cosine",
        )  # fmt: skip

    @property
    def action_size(self) -> int:
        """Active powers and reactive powers of the sources, shares shed of the blocks, voltage."""
        return 2 * len(self.sources) + len(self.blocks) + 1

    @property
    def action_counts(self) -> tuple[int, ...]:
        """All are numbers."""
        return (0,) * self.action_size

    def nothing(self) -> jax.Array:
        """The action that leaves the plant to itself."""
        return jnp.zeros(self.action_size)

    def begin(self, key: jax.Array, params: MicrogridParams) -> MicrogridState:
        """Draws a day; the state before it is what the plant does by itself in its first hour, undisturbed."""
        episode = jax.random.randint(key, (), 0, params.days.hour.shape[0])
        dtype, n, island = params.grid.base_va.dtype, len(self.sources), params.island
        own = None if island.store is None else initial(island.store)
        state = MicrogridState(
            episode=episode, t=jnp.zeros((), jnp.int32), stores=Stores(initial(island.batteries), own),
            out_h=jnp.zeros(n, dtype), v=jnp.zeros(len(self.nodes), dtype), power=jnp.zeros(n, dtype),
            own=jnp.zeros(2, dtype), served=jnp.ones(len(self.blocks), dtype), swing_hz=jnp.zeros(2, dtype),
        )  # fmt: skip
        request, still = self.ask(state, self.nothing(), params), jnp.zeros((), dtype)
        nobody = jnp.zeros(len(self.blocks), bool)
        _, flow, slack = network(params.grid, island, request, request.kw, nobody, still)
        state = self._seen(state, request, (request.kw, nobody, flow, slack), params)
        known = {name: jnp.where(flow.converged, getattr(state, name), jnp.nan) for name in ("v", "power", "own")}
        return dataclasses.replace(state, **known)

    def ask(self, state: MicrogridState, action: jax.Array, params: MicrogridParams) -> Request:
        """What an action asks for in the coming step, undisturbed."""
        island, nominal = params.island, params.grid.nominal
        n, d, p = len(self.sources), len(self.diesels), len(self.inverters)
        now = at(nominal, self._now(state, params))
        active, reactive, off, voltage = jnp.split(
            jnp.clip(action.astype(now.load_kw.dtype), -1.0, 1.0), [n, 2 * n, 2 * n + len(self.blocks)]
        )
        on = (state.out_h <= 0).astype(now.load_kw.dtype)
        served = 1 - jnp.maximum(off, 0.0)
        available = on[d : d + p] * now.generation_kw[d : d + p]
        fed = available * (1 + jnp.minimum(active[d : d + p], 0.0))
        stored = on[d + p :] * active[d + p :] * island.batteries.kw_rated
        net = jnp.sum(now.load_kw * served[island.block]) - jnp.sum(fed) - jnp.sum(stored)
        net = net + params.dispatch.gain_kw * (params.dispatch.wanted - self._charge(state, params))
        share = params.dispatch.share * jnp.append(jnp.ones_like(on[:1]), on[:d])
        most = island.machines.kw_high[1:]
        burnt = share[1:] / jnp.maximum(jnp.sum(share), 1e-9) * net + active[:d] * most
        kw = jnp.concatenate([on[:d] * jnp.clip(burnt, 0.0, most), fed, stored])
        own = jnp.concatenate([kw[:d] * params.dispatch.kvar_per_kw, jnp.zeros_like(kw[d:])])
        room = jnp.sqrt(jnp.maximum(island.kva**2 - kw**2, 1e-12))
        point = dataclasses.replace(now, source_pu=nominal.source_pu * (1 + VOLTAGE_RANGE * voltage[0]))
        return Request(point, kw, own + reactive * room, on, available, served)

    def advance(self, key: jax.Array, state: MicrogridState, action: jax.Array, params: MicrogridParams):
        """Asks, lets a disturbance strike, and settles again."""
        grid, island = params.grid, params.island
        request = self.ask(state, action, params)
        struck, gone, kind = strike(key, params.disturbances, island, request)
        nobody = jnp.zeros(len(self.blocks), bool)
        before = settle(grid, island, request, state.stores, params.hours, nobody)
        trace, stores, fallen, lost = ride(grid, island, before, struck, request.available_kw, state.stores)
        rest = params.hours - jnp.sum(island.seconds) / 3600
        after = settle(grid, island, struck, stores, rest, fallen)
        after = pick(lost, before, after)  # what a lost island would settle to means nothing
        solved = before.solved & jnp.all(trace.solved) & after.solved
        over = lost | after.lost
        stored, wear = self._store(stores, after, rest, params)
        stores = pick(over, stores, stored)
        dark = jnp.where(over, 0.0, 1.0).astype(rest.dtype)
        seen = after.kw, after.fallen, after.flow, after.slack
        new = self._seen(dataclasses.replace(state, stores=stores), struck, seen, params)
        swing = params.nominal_hz * jnp.stack([smallest(trace.lowest), largest(trace.highest)])
        out = jnp.maximum(jnp.where(gone, params.disturbances.repair_h, state.out_h) - params.hours, 0.0)
        new = dataclasses.replace(
            new, t=state.t + 1, out_h=out, swing_hz=swing, v=dark * new.v, power=dark * new.power,
            own=dark * new.own, served=dark * new.served,
        )  # fmt: skip
        late = new.t >= self.horizon
        figures = self.energies(before, trace, after, struck, jnp.where(over, 0.0, rest), params)
        wear = jnp.sum(trace.wear_cost) + dark * wear
        reward, info = self._money(figures, wear, over, late, new, params)
        info |= {
            "disturbance": kind.astype(rest.dtype), "frequency_low_hz": swing[0], "frequency_high_hz": swing[1],
            "loss_kw": dark * results.losses(grid, after.point, after.flow).real, "forming_kw": dark * after.slack.real,
            "relay_blocks": jnp.sum(after.fallen).astype(rest.dtype),
        }  # fmt: skip
        cost = jnp.where(over, 0.0, self._violations(after, params))
        beyond = jnp.maximum(largest(jnp.abs(swing)) - params.band_hz, 0.0)
        cost = jnp.concatenate([beyond[None], cost, 1 - dark[None]])
        return new, Outcome(reward, cost, solved, over, late, info)

    def energies(self, before: Settled, trace: Trace, after: Settled, struck: Request, rest_h: jax.Array, params):
        """The step's energies in kWh and running hours, by name.

        `mechanical` (1 + d) is what the machines' primary powers gave, their kinetic energy given back at the end;
        `running_h` (1 + d), `unserved` (blocks,) and `curtailed` () speak for themselves.
        """
        m, d, p = params.island.machines, len(self.diesels), len(self.inverters)
        h = trace.seconds / 3600
        on = [jnp.append(jnp.ones_like(rest_h)[None], struck.on[:d] * (s.kw[:d] > 0)) for s in (before, after)]
        given = jnp.append(after.slack.real, after.kw[:d])
        back = jnp.where(rest_h > 0, -inertia(m, on[0]) * trace.w[-1], 0.0)
        mechanical = (jnp.sum(trace.mechanical_kws, axis=0) + back) / 3600 + rest_h * given
        running = on[0] * jnp.sum(h) + on[1] * rest_h
        # The rest of the step is one more row.
        h = jnp.append(h, rest_h)
        fallen = jnp.concatenate([trace.fallen, after.fallen[None]])
        unserved = demand(params.island, struck) * matmul(h, 1 - struck.served[None] * (1 - fallen))
        sun = jnp.concatenate([trace.available_kw, struck.available_kw[None]]) * struck.on[None, d : d + p]
        fed = jnp.concatenate([trace.kw[:, d : d + p], after.kw[None, d : d + p]])
        curtailed = jnp.sum(matmul(h, jnp.maximum(sun - fed, 0.0)))
        return {"mechanical": mechanical, "running_h": running, "unserved": unserved, "curtailed": curtailed}

    def _money(self, figures, wear, over, late, new: MicrogridState, params: MicrogridParams):
        prices, island = params.prices, params.island
        burns = jnp.ones_like(island.machines.kva).at[0].set(1.0 if island.store is None else 0.0)
        rated = prices.litres_rated_h * island.machines.kw_high * figures["running_h"]
        fuel = prices.litre * jnp.sum(burns * (prices.litres_kwh * figures["mechanical"] + rated))
        unserved = jnp.sum(prices.unserved * figures["unserved"])
        taken = jnp.sum(initial(island.batteries).kwh - new.stores.batteries.kwh)
        if island.store is not None and new.stores.own is not None:
            taken = taken + jnp.sum(initial(island.store).kwh - new.stores.own.kwh)
        rest = jnp.where(late, prices.stored * taken, 0.0)
        blackout = jnp.where(over, prices.blackout, 0.0)
        reward = -fuel - unserved - prices.curtailed * figures["curtailed"] - wear - rest - blackout
        info = {
            "fuel_cost": fuel, "unserved_cost": unserved, "unserved_kwh": jnp.sum(figures["unserved"]),
            "curtailed_kwh": figures["curtailed"], "wear_cost": wear, "blackout_cost": blackout,
        }  # fmt: skip
        return reward, info

    def _store(self, stores: Stores, after: Settled, hours: jax.Array, params: MicrogridParams):
        """Energies after the rest of the step, and the wear."""
        island, first = params.island, len(self.diesels) + len(self.inverters)
        kw = after.kw[first:]
        _, batteries, books = operate(island.batteries, stores.batteries, Power(kw, 0 * kw), hours)
        own, wear = stores.own, jnp.sum(books.wear_cost)
        if island.store is not None and own is not None:
            kw = after.slack.real[None]
            _, own, books = operate(island.store, own, Power(kw, 0 * kw), hours)
            wear = wear + jnp.sum(books.wear_cost)
        return Stores(batteries, own), wear

    def _violations(self, after: Settled, params: MicrogridParams) -> jax.Array:
        """Voltage and overload, (2,)."""
        v = jnp.abs(after.flow.v)
        voltage = jnp.sum(jnp.maximum(v - params.high, 0.0) + jnp.maximum(params.low - v, 0.0))
        loads = results.loading(params.grid, after.point, after.flow)
        overload = sum((jnp.sum(jnp.maximum(a - 1.0, 0.0)) for a in loads.values()), jnp.zeros_like(voltage))
        own = jnp.maximum(jnp.abs(after.slack) / params.island.machines.kva[0] - 1.0, 0.0)
        return jnp.stack([voltage, overload + own])

    def _seen(self, state: MicrogridState, request: Request, now, params: MicrogridParams) -> MicrogridState:
        kw, fallen, flow, slack = now
        own = jnp.stack([slack.real, slack.imag]) / params.island.machines.kva[0]
        served = request.served * (1 - fallen)
        return dataclasses.replace(state, v=jnp.abs(flow.v), power=kw / params.island.kva, own=own, served=served)

    def _now(self, state: MicrogridState, params: MicrogridParams) -> Profiles:
        """The coming step's profiles; at the end those of the last step."""
        t = jnp.minimum(state.t, self.horizon - 1)
        return jax.tree.map(lambda a: a[state.episode, t], params.days)

    def _charge(self, state: MicrogridState, params: MicrogridParams) -> jax.Array:
        """State of charge of the grid-forming unit; what is wanted where it burns fuel."""
        if params.island.store is None or state.stores.own is None:
            return params.dispatch.wanted
        return (state.stores.own.kwh / params.island.store.kwh_rated)[0]

    def observe(self, state: MicrogridState, params: MicrogridParams) -> jax.Array:
        """As `observation_names` says."""
        now, d, p = self._now(state, params), len(self.diesels), len(self.inverters)
        available = now.generation_kw[d : d + p] / params.island.kva[d : d + p]
        charge = state.stores.batteries.kwh / params.island.batteries.kwh_rated
        on = (state.out_h <= 0).astype(state.v.dtype)
        own = jnp.append(state.own, self._charge(state, params))
        level = jnp.sum(now.load_kw) / jnp.sum(params.grid.nominal.load_kw)
        rest = jnp.stack([*state.swing_hz, level, *self._clock(state, params)])
        return jnp.concatenate([state.v, state.power, own, available, charge, on, state.served, rest])

    def _clock(self, state: MicrogridState, params: MicrogridParams) -> tuple[jax.Array, jax.Array]:
        angle = 2 * jnp.pi * state.t * params.hours / 24
        return jnp.sin(angle), jnp.cos(angle)

    def observe_devices(self, state: MicrogridState, params: MicrogridParams) -> jax.Array:
        """What each device knows by itself and from its neighbours, (devices, features), as `FEATURES` says.

        The power of photovoltaics is what is available, that of a block what is served. The frequency is known to
        all, since all of an island share it.
        """
        sizes = (len(self.diesels), len(self.inverters), len(self.batteries), len(self.blocks))
        now, d, p, many = self._now(state, params), sizes[0], sizes[1], sum(sizes)
        voltage = jnp.mean(state.v[params.place], axis=1)
        near = voltage[params.neighbour]
        kinds = jnp.repeat(jnp.eye(4, dtype=voltage.dtype), jnp.array(sizes), axis=0, total_repeat_length=many)
        available = now.generation_kw[d : d + p] / params.island.kva[d : d + p]
        power = jnp.concatenate([state.power[:d], available, state.power[d + p :], state.served])
        none = jnp.zeros(d + p, voltage.dtype)
        stored = state.stores.batteries.kwh / params.island.batteries.kwh_rated
        charge = jnp.concatenate([none, stored, jnp.zeros_like(state.served)])
        on = jnp.append((state.out_h <= 0).astype(voltage.dtype), jnp.ones_like(state.served))
        level = jnp.sum(now.load_kw) / jnp.sum(params.grid.nominal.load_kw)
        common = jnp.stack(
            [state.own[0], self._charge(state, params), *state.swing_hz, level, *self._clock(state, params)]
        )
        columns = [voltage, near.mean(axis=1), near.min(axis=1), near.max(axis=1), power, charge, on]
        common = jnp.broadcast_to(common[None], (many, common.shape[0]))
        return jnp.concatenate([kinds, jnp.stack(columns, axis=1), common], axis=1)

    def from_devices(self, actions: jax.Array) -> jax.Array:
        """The action from two numbers for each device, (devices, 2), the voltage as it is; blocks use the first."""
        n = len(self.sources)
        return jnp.concatenate([actions[:n, 0], actions[:n, 1], actions[n:, 0], jnp.zeros_like(actions[0, :1])])
