"""Service restoration and feeder reconfiguration by switching, after faults.

A feeder is cut at its switches into sections (`gridjax.powerflow.radial`). Faults strike sections and switches (a
switch may stand for a line) at their rates, and last for their repair times. An episode begins with one fault or more,
drawn by rate among what is in service; more may follow. A step of h hours is, in this order:

1. new faults; where one is energised, the nearest guarding switch on the way to the source trips;
2. if none has tripped, one device that had tripped earlier closes again, if it may: its fault is repaired or isolated;
3. the action: nothing, or one switch is brought into the other position than was observed (if an event has not done so
   already). What is forbidden is refused and changes nothing: closing a faulted switch, energising a fault, making a
   loop, joining two sources, feeding a section through fewer phases than it has. Opening is always allowed;
4. the loads move on, the power flow of what is energised is solved, and for h hours nobody else is served;
5. repair clocks go on by h.

With demand of loads that no source feeds counted as unserved,

    reward = - unserved_price sum(weight kWh unserved) - loss_price kWh lost - operation_price operated
             - refusal_price refused                                                              in money.

Constraints are voltages beyond their limits (summed over live nodes, pu), currents beyond the ratings (summed over
elements, per unit of the rating), and refused moves. The state is radial at all times.

An interruption is counted in customers when it lasts to the end of the step's interval; one that the step's action
ends at once is momentary (`gridjax.reliability.of_rollout` makes indices of the counts).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from gridjax.env.environment import Environment, Outcome
from gridjax.env.restoration_rules import RestorationParams, RestorationState, may_close, touched, trips
from gridjax.powerflow import results
from gridjax.powerflow.radial import RadialFlow, solve_radial
from gridjax.powerflow.solve import PowerFlow
from gridjax.powerflow.topology import Topology, topology

HOURS_A_YEAR = 8760.0
FEATURES = (
    "closed", "tripped", "guards", "may be operated", "faulted", "repair days left", "live on one side",
    "live on the other", "voltage on one side", "voltage on the other", "fault on one side", "fault on the other",
    "neighbours closed", "neighbours live", "neighbours faulted", "lowest voltage of neighbours", "load level",
    "share of customers out", "time sine", "time cosine",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Restoration(Environment):
    """The task; make one with `gridjax.env.restoration_tasks.restoration`.

    Attributes:
      switches: names.
      sections: names, of their first buses.
      locations: names of what can fail, in the order of `rows`.
      rows: where these are among all locations.
      nodes: names.
    """

    switches: tuple[str, ...]
    sections: tuple[str, ...]
    locations: tuple[str, ...]
    rows: tuple[int, ...]
    nodes: tuple[str, ...]

    @property
    def constraints(self) -> tuple[str, ...]:
        """Voltages and currents beyond their limits, and moves that were refused."""
        return ("voltage violation, pu", "overload, pu", "moves refused")

    @property
    def devices(self) -> tuple[str, ...]:
        """The switches."""
        return self.switches

    @property
    def device_numbers(self) -> int:
        """Of each device's action: its score."""
        return 1

    @property
    def observation_names(self) -> tuple[str, ...]:
        """Switches, what is energised, voltages, faults with the time left to their repair, load and time."""
        return (
            *(f"closed {name}" for name in self.switches),
            *(f"tripped {name}" for name in self.switches),
            *(f"energised {name}" for name in self.sections),
            *(f"voltage {name}" for name in self.nodes),
            *(f"fault {name}" for name in self.locations),
            *(f"repair days left {name}" for name in self.locations),
            "load level", "share of customers out", "time sine", "time cosine",
        )  # fmt: skip

    @property
    def action_size(self) -> int:
        """One choice."""
        return 1

    @property
    def action_counts(self) -> tuple[int, ...]:
        """Nothing, or one of the switches, to be opened if it was seen closed and closed if it was seen open."""
        return (1 + len(self.switches),)

    def nothing(self) -> jax.Array:
        """The action that waits for repair."""
        return jnp.zeros(1, jnp.int32)

    def begin(self, key: jax.Array, params: RestorationParams) -> RestorationState:
        """Draws a day, a time of it, and the first faults; protection has tripped, and nobody has done anything."""
        day_key, time_key, fault_key = jax.random.split(key, 3)
        days, steps, _ = params.multiplier.shape
        dtype = params.grid.base_va.dtype
        before = topology(params.sections, params.normal, params.guard)
        repair = self._first_faults(fault_key, before, params)
        tripped = trips(params, params.normal, before, repair > 0)
        closed = params.normal & ~tripped
        state = RestorationState(
            day=jax.random.randint(day_key, (), 0, days),
            start=jax.random.randint(time_key, (), 0, steps),
            t=jnp.zeros((), jnp.int32),
            closed=closed,
            tripped=tripped,
            repair_hours=repair,
            served=before.live,
            top=topology(params.sections, closed, params.guard),
            v=jnp.zeros(len(self.nodes), dtype),
        )
        flow = self.flow(state, params)
        return dataclasses.replace(state, v=jnp.where(flow.converged, jnp.abs(flow.v), jnp.nan))

    def _first_faults(self, key: jax.Array, top: Topology, params: RestorationParams) -> jax.Array:
        """Repair hours of the faults that an episode begins with, (locations,).

        So many as `at_once` says, one after another among the locations in service, each as likely as its rate.
        """
        count_key, place_key, repair_key = jax.random.split(key, 3)
        failures, sections = params.failures, params.sections
        most = failures.at_once.shape[0]
        faults = jax.random.choice(count_key, most, p=failures.at_once) + 1
        ends = top.live[sections.edge[: sections.switches]]
        service = jnp.concatenate([top.live[: sections.count], params.normal & ends.all(axis=1)])
        likely = service & (failures.rate > 0)
        # The largest of log rates plus Gumbel noise are such a draw without replacement.
        noise = jax.random.gumbel(place_key, likely.shape, failures.rate.dtype)
        score = jnp.where(likely, jnp.log(jnp.where(likely, failures.rate, 1.0)) + noise, -jnp.inf)
        value, place = jax.lax.top_k(score, most)
        drawn = (jnp.arange(most) < faults) & jnp.isfinite(value)
        here = jnp.zeros(likely.shape, bool).at[place].max(drawn)
        return jnp.where(here, self._repair_times(repair_key, params), 0.0)

    def _repair_times(self, key: jax.Array, params: RestorationParams) -> jax.Array:
        failures = params.failures
        variance = jnp.log1p(failures.repair_spread**2)
        normal = jax.random.normal(key, failures.rate.shape, failures.rate.dtype)
        return failures.repair_hours * jnp.exp(jnp.sqrt(variance) * normal - variance / 2)

    def multiplier(self, state: RestorationState, params: RestorationParams) -> jax.Array:
        """(loads,) of the coming step; at the end those of the last step."""
        t = state.start + jnp.minimum(state.t, self.horizon - 1)
        return params.multiplier[state.day, t % params.multiplier.shape[1]]

    def flow(self, state: RestorationState, params: RestorationParams) -> RadialFlow:
        """The power flow of the coming step as the switches stand."""
        nominal, factor = params.grid.nominal, self.multiplier(state, params)
        p = jnp.concatenate([nominal.load_kw * factor, -nominal.generation_kw])
        q = jnp.concatenate([nominal.load_kvar * factor, -nominal.generation_kvar])
        return solve_radial(params.sections, state.top, (p, q), nominal.source_pu)

    def events(self, key: jax.Array, state: RestorationState, params: RestorationParams) -> RestorationState:
        """New faults, and what protection makes of them; else one tripped device that may closes again."""
        strike_key, repair_key = jax.random.split(key)
        healthy = state.repair_hours <= 0
        likely = -jnp.expm1(-params.failures.rate * params.failures.severity * params.hours / HOURS_A_YEAR)
        strike = healthy & (jax.random.uniform(strike_key, likely.shape, likely.dtype) < likely) & (state.t > 0)
        repair = jnp.where(strike, self._repair_times(repair_key, params), state.repair_hours)
        opened = trips(params, state.closed, state.top, repair > 0)
        again = state.tripped & may_close(params, state.closed, state.top, repair > 0) & ~jnp.any(opened)
        again = again & (jnp.cumsum(again) == 1)
        closed = (state.closed & ~opened) | again
        top = topology(params.sections, closed, params.guard)
        tripped = (state.tripped | opened) & ~again
        return dataclasses.replace(state, closed=closed, tripped=tripped, repair_hours=repair, top=top)

    def allowed(self, state: RestorationState, params: RestorationParams) -> jax.Array:
        """(1 + switches,) bool, the actions that would not be refused if nothing fails in between."""
        closing = may_close(params, state.closed, state.top, state.repair_hours > 0)
        return jnp.concatenate([jnp.ones(1, bool), state.closed | closing])

    def operate(self, state: RestorationState, seen: jax.Array, action: jax.Array, params: RestorationParams):
        """The state after an action that was taken on observed positions `seen`, and whether it was refused."""
        chosen = jnp.arange(len(self.switches)) == action[0].astype(jnp.int32) - 1
        wanted = chosen & (state.closed == seen)
        move = wanted & self.allowed(state, params)[1:]
        closed = state.closed ^ move
        refused = jnp.any(wanted & ~move)
        top = topology(params.sections, closed, params.guard)
        return dataclasses.replace(state, closed=closed, tripped=state.tripped & ~move, top=top), refused

    def advance(
        self, key: jax.Array, state: RestorationState, action: jax.Array, params: RestorationParams
    ) -> tuple[RestorationState, Outcome]:
        """Events, the action, and an interval with what is energised then."""
        after = self.events(key, state, params)
        moved, refused = self.operate(after, state.closed, action, params)
        operated = jnp.any(moved.closed != after.closed)
        flow = self.flow(moved, params)
        reward, cost, info = self.account(moved, flow, params)
        dtype = reward.dtype
        moves = jnp.stack([operated, refused]).astype(dtype)
        reward = reward - params.prices.operation * moves[0] - params.prices.refusal * moves[1]
        was, during, now = (live[params.load_section] for live in (state.served, after.top.live, moved.top.live))
        counts = {"customers_interrupted": was & ~now, "customers_momentary": was & ~during & now}
        info |= {name: jnp.sum(jnp.where(who, params.customers, 0.0)) for name, who in counts.items()}
        info |= {"operations": moves[0], "refused": moves[1]}
        info["faults"] = jnp.sum(moved.repair_hours > 0).astype(dtype)
        new = dataclasses.replace(
            moved, t=state.t + 1, served=moved.top.live, v=jnp.abs(flow.v),
            repair_hours=jnp.maximum(moved.repair_hours - params.hours, 0.0),
        )  # fmt: skip
        late = new.t >= self.horizon
        return new, Outcome(reward, jnp.append(cost, moves[1]), flow.converged, jnp.zeros((), bool), late, info)

    def account(self, state: RestorationState, flow: RadialFlow, params: RestorationParams):
        """What the coming step costs as the switches stand: reward, violations (2,), energies and customers."""
        out = ~state.top.live[params.load_section]
        hours, prices = params.hours, params.prices
        demand = jnp.where(out, params.grid.nominal.load_kw * self.multiplier(state, params), 0.0)
        weighted = hours * jnp.sum(params.weight * demand)
        loss = hours * (jnp.sum(flow.source) - flow.taken).real * params.grid.base_va / 1e3
        people = jnp.sum(jnp.where(out, params.customers, 0.0))
        info = {
            "energy_not_served_kwh": hours * jnp.sum(demand), "weighted_kwh": weighted, "loss_kwh": loss,
            "customers_out": people, "customer_minutes": 60.0 * hours * people,
        }  # fmt: skip
        return -prices.unserved * weighted - prices.loss * loss, self._violations(flow, params), info

    def _violations(self, flow: RadialFlow, params: RestorationParams) -> jax.Array:
        v = jnp.abs(flow.v)
        voltage = jnp.where(flow.live, jnp.maximum(v - params.high, 0.0) + jnp.maximum(params.low - v, 0.0), 0.0)
        amps = jnp.max(jnp.abs(flow.edge_current[: len(self.switches)]), axis=1) * params.base_a
        overload = jnp.sum(jnp.maximum(amps / params.rating_a - 1.0, 0.0))
        none = jnp.zeros(0, v.dtype)
        same = PowerFlow(flow.v, flow.converged, flow.iterations, flow.residual, none, none, none)
        loads = results.loading(params.grid, params.grid.nominal, same)
        for kind in ("lines", "transformers"):
            overload = overload + jnp.sum(jnp.maximum(loads.get(kind, none) - 1.0, 0.0))
        return jnp.stack([jnp.sum(voltage), overload])

    def _common(self, state: RestorationState, params: RestorationParams) -> jax.Array:
        """Load level, share of customers out, and the time of day."""
        kw = params.grid.nominal.load_kw
        level = jnp.sum(kw * self.multiplier(state, params)) / jnp.sum(kw)
        out = ~state.top.live[params.load_section]
        share = jnp.sum(jnp.where(out, params.customers, 0.0)) / jnp.sum(params.customers)
        angle = 2 * jnp.pi * (state.start + state.t) / params.multiplier.shape[1]
        return jnp.stack([level, share, jnp.sin(angle).astype(level.dtype), jnp.cos(angle).astype(level.dtype)])

    def observe(self, state: RestorationState, params: RestorationParams) -> jax.Array:
        """As `observation_names` says; the load is that of the coming step."""
        repair = state.repair_hours[jnp.array(self.rows)]
        live = state.top.live[: len(self.sections)]
        flags = (a.astype(state.v.dtype) for a in (state.closed, state.tripped, live))
        return jnp.concatenate(
            [*flags, state.v, (repair > 0).astype(state.v.dtype), repair / 24, self._common(state, params)]
        )

    def observe_devices(self, state: RestorationState, params: RestorationParams) -> jax.Array:
        """What each switch knows by itself and from its neighbours, (switches, features), as `FEATURES` says.

        It is the same for every switch and every feeder, so that one policy can serve all of them.
        """
        sections, dtype = params.sections, state.v.dtype
        switches, count = len(self.switches), len(self.sections)
        sides = sections.edge[:switches]
        repair = state.repair_hours[count:]
        live = state.top.live[sides].astype(dtype)
        v = jnp.mean(state.v[params.ends], axis=2)
        hit = touched(params, state.closed, state.repair_hours > 0)[sides].astype(dtype)
        near = params.neighbour
        columns = [
            state.closed, state.tripped, params.guard, self.allowed(state, params)[1:], repair > 0, repair / 24,
            live[:, 0], live[:, 1], v[:, 0], v[:, 1], hit[:, 0], hit[:, 1],
            jnp.mean(state.closed[near].astype(dtype), axis=1), jnp.mean(live.max(axis=1)[near], axis=1),
            jnp.max(hit.max(axis=1)[near], axis=1), jnp.min(v.min(axis=1)[near], axis=1),
        ]  # fmt: skip
        own = jnp.stack([a.astype(dtype) for a in columns], axis=1)
        common = self._common(state, params)
        return jnp.concatenate([own, jnp.broadcast_to(common[None], (switches, common.shape[0]))], axis=1)

    def from_devices(self, scores: jax.Array) -> jax.Array:
        """The action from one number a switch, (switches,): the highest is operated, none if it is not above 0."""
        best = jnp.argmax(scores)
        return jnp.where(scores[best] > 0, best + 1, 0)[None].astype(jnp.int32)
