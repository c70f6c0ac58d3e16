"""What a day's best actions are with full knowledge of it, found by search, and the best constant action.

Every figure from here is *attained*: the actions are played in the environment, so that the true optimum is at least as
good. None is a proven bound. Scored is J = return - price . sum of the costs, where `price` is zero in environments
whose reward has the violations in it.

*Constant actions, entry by entry* (coordinate ascent): all regulators on one position, each entry over all its
positions (or those near), up to four capacitors in all their combinations, over all days in one batch, until nothing
gets better; from every combination of up to four capacitors, since the best taps of one are no way to those of another.

*Volt-VAR control, path by path.* With the other devices' moves fixed, a step's reward apart from wear depends on a
device's position alone, R_t(p), and the best path over the whole day is the longest way through T times K positions
(R. Bellman, Dynamic Programming, 1957):

    V_t(p) = R_t(p) + max over q of [V_{t-1}(q) - w |p - q|],   V_0(p) = R_0(p) - w |p - start|.

In turn go: capacitors by all their combinations, each regulator, all regulators shifted together, and each battery,
whose state is its energy: V_t(E) = max over k of [R_t(k) + V_{t+1}(E - d_k)], interpolated over a grid of E. A day
takes a path that is better when played; sweeps go on while they help.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.days import replay, room
from gridjax.control.storage import StorageState
from gridjax.env.environment import Environment
from gridjax.env.volt_var import VoltVar, VoltVarParams, VoltVarState

NEAR = np.array([-8, -4, -2, -1, 0, 1, 2, 4, 8])
NUMBERS = np.linspace(-1.0, 1.0, 9)  # tried of an entry that is a number
ENERGIES = 129  # grid points of a battery's energy
GAIN = 1e-4  # a sweep that gains less of the score than this is the last


def score(sums: dict[str, np.ndarray], price: np.ndarray) -> np.ndarray:
    """J of each day, from `benchmarks.days.walk`."""
    return sums["return"] - sums["violation"] @ price


def best_constant(
    env: Environment,
    params: Any,
    keys: jax.Array,
    start: np.ndarray,
    *,
    price: np.ndarray,
    groups: tuple[tuple[int, ...], ...] = (),
    near: bool = False,
    rounds: int = 4,
) -> tuple[np.ndarray, float]:
    """The best constant action over the days that begin with the keys, entry by entry.

    Args:
      env: the environment.
      params: of it.
      keys: (days,) as from `benchmarks.days.day_keys`.
      start: (action_size,) where the search begins.
      price: (costs,) of the costs in the score.
      groups: entries that are moved in turn; () is each alone. Those of a group are tried in all combinations where
        they have two positions each, else with one position for all, then shifted together.
      near: try only positions near the present one (many devices).
      rounds: at most so many over all entries.

    Returns:
      The action and its mean score.
    """
    in_turn = list(groups) or [(k,) for k in range(env.action_size)]
    best, found = np.array(start), -np.inf
    for turn in range(rounds):
        before = found
        for entries in in_turn:
            count, whole = env.action_counts[entries[0]], turn == 0 and len(entries) > 1
            tried = _tried(best, entries, count, near and not whole, whole)
            scores = constant_scores(env, params, keys, tried, price).mean(axis=1)
            if scores.max() > found:
                best, found = tried[np.argmax(scores)], float(scores.max())
        if found - before <= GAIN * abs(found):
            break
    return best, found


def _tried(action: np.ndarray, entries: tuple[int, ...], count: int, near: bool, level: bool) -> np.ndarray:
    """Actions with these entries moved together: combined, on one position (`level`), or shifted by a number."""
    at = list(entries)
    out = np.repeat(action[None], 1, axis=0)
    if count == 2:
        values = np.array(list(itertools.product((0, 1), repeat=len(at))))
    elif not count:
        values = NUMBERS[:, None] * np.ones(len(at))
    elif level or (len(at) == 1 and (not near or count <= len(NEAR))):
        values = np.arange(count)[:, None] * np.ones(len(at), int)
    else:
        values = np.unique(np.clip(action[at] + NEAR[:, None], 0, count - 1), axis=0)
    more = np.repeat(action[None], len(values), axis=0)
    more[:, at] = values
    return np.concatenate([out, more]).astype(action.dtype)


def constant_scores(
    env: Environment, params: Any, keys: jax.Array, actions: np.ndarray, price: np.ndarray
) -> np.ndarray:
    """The scores (actions, days) of constant actions (actions, action_size)."""
    count, days = len(actions), keys.shape[0]
    shape = (count, days, env.horizon, env.action_size)
    held = np.broadcast_to(actions[:, None, None], shape).reshape(-1, *shape[2:])
    at = np.tile(np.arange(days), count)
    return score(replay(env, keys[at], params, held, room(env)), price).reshape(count, days)


@functools.partial(jax.jit, static_argnames="env")
def _trace(env: VoltVar, keys: jax.Array, params: VoltVarParams, actions: jax.Array):
    """Each day's first state, and what is stored before each step, (days, steps, batteries)."""

    def one(key, actions):
        def body(state, action):
            return env.advance(key, state, action, params)[0], state.storage.kwh

        begun = env.begin(key, params)
        return begun, jax.lax.scan(body, begun, actions)[1]

    return jax.vmap(one)(keys, actions)


@functools.partial(jax.jit, static_argnames="env")
def _stage(env: VoltVar, params: VoltVarParams, episode: jax.Array, t: jax.Array, kwh: jax.Array, action: jax.Array):
    """Rewards of single steps in which nothing moves, (rows,)."""
    caps, taps = len(env.capacitors), len(env.regulators)

    def one(episode, t, kwh, action):
        dtype = params.grid.base_va.dtype
        devices = action.astype(dtype)
        state = VoltVarState(
            episode=episode, t=t, capacitor=devices[:caps], position=devices[caps : caps + taps],
            storage=StorageState(kwh), start_kwh=params.batteries.kwh_initial, power=jnp.zeros_like(kwh),
            v=jnp.zeros(len(env.nodes), dtype), level=jnp.ones((), dtype),
        )  # fmt: skip
        outcome = env.advance(jax.random.key(0), state, action, params)[1]
        return jnp.where(outcome.solved, outcome.reward, env.failure_penalty)

    return jax.vmap(one)(episode, t, kwh, action)


def stage_rewards(
    env: VoltVar, params: VoltVarParams, episode: np.ndarray, kwh: np.ndarray, tried: np.ndarray
) -> np.ndarray:
    """R_t of the actions tried.

    Args:
      env: the environment.
      params: of it.
      episode: (days,).
      kwh: (days, steps, batteries) stored before each step.
      tried: (days, steps, K, action_size).

    Returns:
      (days, steps, K).
    """
    days, steps, count, size = tried.shape
    rows, at_once = days * steps * count, room(env)
    day, t = np.divmod(np.arange(rows) // count, steps)
    flat = tried.reshape(rows, size)
    out = np.empty(rows)
    for start in range(0, rows, at_once):
        at = np.minimum(np.arange(start, start + at_once), rows - 1)
        used = min(at_once, rows - start)
        value = _stage(env, params, episode[day[at]], t[at], kwh[day[at], t[at]], flat[at])
        out[start : start + used] = np.asarray(value)[:used]
    return out.reshape(days, steps, count)


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
def best_path(stage: jax.Array, place: jax.Array, start: jax.Array, weight: jax.Array) -> jax.Array:
    """The candidates whose sum of stages less the price of moves is highest.

    Args:
      stage: (days, steps, K) R_t.
      place: (days, steps, K, devices) where each candidate puts the devices.
      start: (days, devices) where they are at first.
      weight: (devices,) price of moving each by one.

    Returns:
      (days, steps) numbers of candidates.
    """

    def moves(a, b):
        return jnp.abs(b[None, :] - a[:, None]) @ weight

    def forward(value, now):
        stage, before, place = now
        total = value[:, None] - moves(before, place)
        return jnp.max(total, axis=0) + stage, jnp.argmax(total, axis=0)

    first = stage[0] - moves(start[None], place[0])[0]
    last, came = jax.lax.scan(forward, first, (stage[1:], place[:-1], place[1:]))

    def backward(k, came):
        return came[k], k

    begin, rest = jax.lax.scan(backward, jnp.argmax(last), came, reverse=True)
    return jnp.concatenate([begin[None], rest])


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, 0, None, None))
def best_energies(stage: jax.Array, taken: jax.Array, start: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """The powers of a battery with the highest sum of stages that its energy allows.

    Args:
      stage: (days, steps, K) R_t of each power.
      taken: (K,) kWh that each takes out of the store.
      start: (days,) kWh at first.
      low: () kWh.
      high: () kWh.

    Returns:
      (days, steps) numbers of powers.
    """
    grid = jnp.linspace(low, high, ENERGIES)

    def options(kwh, stage, later):
        after = kwh - taken
        fits = (after >= low - 1e-9) & (after <= high + 1e-9)
        return jnp.where(fits, stage + jnp.interp(after, grid, later), -jnp.inf)

    def backward(later, stage):
        return jnp.max(jax.vmap(lambda kwh: options(kwh, stage, later))(grid), axis=1), later

    _, later = jax.lax.scan(backward, jnp.zeros(ENERGIES), stage, reverse=True)

    def forward(kwh, now):
        k = jnp.argmax(options(kwh, *now))
        return kwh - taken[k], k

    return jax.lax.scan(forward, start, (stage, later))[1]


def step_by_step(
    env: Environment, params: Any, keys: jax.Array, starts: list[np.ndarray], *, price: np.ndarray, sweeps: int = 1
) -> np.ndarray:
    """Actions (days, steps, action_size) of positions: each entry of each step in turn is tried at all its positions.

    Args:
      env: an environment of positions.
      params: of it.
      keys: (days,) as from `benchmarks.days.day_keys`.
      starts: actions (days, steps, action_size); a day begins with the best of them.
      price: (costs,) of the costs in the score.
      sweeps: over all steps.

    Guarantees:
      On no day worse than any start.
    """
    found = np.stack([score(replay(env, keys, params, start), price) for start in starts])
    days = np.arange(keys.shape[0])
    actions, best = np.stack(starts)[found.argmax(axis=0), days], found.max(axis=0)
    for _, t, k in itertools.product(range(sweeps), range(env.horizon), range(env.action_size)):
        count = env.action_counts[k]
        tried = np.repeat(actions[None], count, axis=0)
        tried[:, :, t, k] = np.arange(count)[:, None]
        rows = tried.reshape(-1, *actions.shape[1:])
        sums = replay(env, keys[np.tile(days, count)], params, rows)
        values = score(sums, price).reshape(count, -1)
        top, better = values.argmax(axis=0), values.max(axis=0) > best
        actions = np.where(better[:, None, None], tried[top, days], actions)
        best = np.maximum(best, values.max(axis=0))
    return actions


def volt_var_days(
    env: VoltVar,
    params: VoltVarParams,
    keys: jax.Array,
    starts: list[np.ndarray],
    *,
    near: bool = False,
    sweeps: int = 3,
) -> np.ndarray:
    """Actions (days, steps, action_size) of discrete Volt-VAR control by paths, from the best of the starts.

    Args:
      env: the environment, with discrete actions.
      params: of it.
      keys: (days,) as from `benchmarks.days.day_keys`.
      starts: actions (days, steps, action_size).
      near: try only positions near the present ones.
      sweeps: at most so many over all devices.

    Guarantees:
      On no day worse than any start.
    """
    found = np.stack([replay(env, keys, params, start)["return"] for start in starts])
    days = np.arange(keys.shape[0])
    actions, best = np.stack(starts)[found.argmax(axis=0), days], found.max(axis=0)
    for _ in range(sweeps):
        before = best
        for what, entries in coordinates(env, near):
            tried = _better(env, params, keys, actions, what, entries, near)
            value = replay(env, keys, params, tried)["return"]
            actions = np.where((value > best)[:, None, None], tried, actions)
            best = np.maximum(value, best)
        if np.mean(best - before) <= GAIN * np.mean(np.abs(best)):
            break
    return actions


def coordinates(env: VoltVar, near: bool) -> list[tuple[str, tuple[int, ...]]]:
    """What is moved in turn: capacitors in groups, regulators one by one and together, batteries."""
    caps, taps = len(env.capacitors), len(env.regulators)
    width = 3 if near else 5
    out = [("combine", tuple(range(k, min(k + width, caps)))) for k in range(0, caps, width)]
    regulators = range(caps, caps + taps)
    if taps > 1:
        out.append(("shift", tuple(regulators)))
    out += [("each", (k,)) for k in regulators]
    return out + [("battery", (k,)) for k in range(caps + taps, env.action_size)]


def _better(env, params, keys, actions, what, entries, near) -> np.ndarray:
    """The actions with these entries on their best paths."""
    begun, kwh = jax.tree.map(np.asarray, _trace(env, keys, params, actions))
    days, steps, _ = actions.shape
    caps, taps = len(env.capacitors), len(env.regulators)
    tried = np.repeat(actions[:, :, None], len(values := _values(env, what, entries, near)), axis=2)
    at = list(entries)
    if what == "shift" or (what == "each" and near):
        top = env.action_counts[entries[0]] - 1
        tried[..., at] = np.clip(actions[:, :, None, at] + values, 0, top)
    else:
        tried[..., at] = values
    if what != "battery":
        stage = stage_rewards(env, params, begun.episode, kwh, tried)
        weight = np.r_[np.full(caps, params.weights.capacitor), np.full(taps, params.weights.tap)]
        start = np.concatenate([begun.capacitor, begun.position], axis=1)
        chosen = best_path(stage, tried[..., : caps + taps].astype(float), start, weight)
    else:
        b = entries[0] - caps - taps
        fleet = jax.tree.map(np.asarray, params.batteries)
        middle = env.battery_count // 2
        kw = (values[:, 0] - middle) / middle * fleet.kw_rated[b] * (params.gain[b] if env.as_powergym else 1.0)
        direct = np.asarray(kw) + fleet.idling_kw[b]
        losses = np.where(direct >= 0, 1 / fleet.discharge_efficiency[b], fleet.charge_efficiency[b])
        kwh = kwh.copy()
        kwh[:, :, b] = (fleet.kwh_reserve[b] + fleet.kwh_rated[b]) / 2  # every power is possible for an hour
        stage = stage_rewards(env, params, begun.episode, kwh, tried)
        taken = direct * losses * float(params.hours)
        chosen = best_energies(stage, taken, begun.start_kwh[:, b], fleet.kwh_reserve[b], fleet.kwh_rated[b])
    day, t = np.ogrid[:days, :steps]
    return tried[day, t, np.asarray(chosen)]


def _values(env: VoltVar, what: str, entries: tuple[int, ...], near: bool) -> np.ndarray:
    """What the entries are tried with: positions, or shifts of them, (K, entries)."""
    count = env.action_counts[entries[0]]
    if what == "combine":
        return np.array(list(itertools.product((0, 1), repeat=len(entries))))
    if what == "shift":
        return (NEAR if near else np.arange(-(count // 2), count // 2 + 1))[:, None]
    if what == "each" and near:
        return NEAR[:, None]
    if what == "battery" and near:
        middle = count // 2
        return np.unique(np.r_[np.arange(0, count, max(middle // 4, 1)), middle])[:, None]
    return np.arange(count)[:, None]
