"""What `benchmarks.offline_rl` trains on: generated data sets of two grid tasks and of a pendulum, and their judges.

No data set holds the best behaviour: the feeders' own controls with exploration, and random actions. The pendulum of
Gymnasium is swung up by its energy (K. J. Astrom and K. Furuta, "Swinging up a pendulum by energy control", 2000),
with the angle from upright and E zero there,

    E = w^2 m l^2 / 6 + m g l (cos(angle) - 1) / 2,   torque = -k w E,

and caught near the top by torque = -(p angle + d w), all that with noise. Rewards are scaled by episode length over the
range of the data's returns, so that a step's reward has the size that the algorithms' published numbers are made for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from algorithms.batches import Batch, from_dataset
from algorithms.evaluation import evaluate, evaluate_policy, held_out
from algorithms.spaces import LIMIT, Space, plain_space, space_of
from gridjax.env.behaviours import named
from gridjax.env.collection import collect
from gridjax.env.tasks import feeder_of, make

GRIDS: dict[str, dict[str, Any]] = {
    "VoltVar-ieee13-v0": {"actions": "continuous"},
    "DerControl-ieee13-v0": {},
}
CLASSIC = "Pendulum-v1"
TASKS = (*GRIDS, CLASSIC)
SHARES = {"noisy-classical": 0.5, "random": 0.5}
TRAINING_DAYS, TRAINING_SEED, HELD_OUT_SEED = 100, 0, 1000
TORQUE = 2.0  # the largest of the pendulum
SWING, HOLD = 200, (10.0, 3.0)  # steps of an episode; the catching controller's factors
NOISE = (0.5, 1.5, 3.0)  # of a swinging episode's actions; every fourth episode is random


@dataclass(frozen=True)
class Mode:
    """The peer's actors as a policy, whose weights are the memory; `space` scales what they see."""

    space: Space

    def __call__(self, key, observation, state, memory):
        """tanh of the network's output."""
        del key, state
        x = self.space.scaled(jnp.asarray(observation, jnp.float32))
        return perceptron(memory, x), memory


def perceptron(weights: Any, x: jax.Array) -> jax.Array:
    """The actions (..., action_size) of W_1 (out, in), b_1, W_2, ..., as `benchmarks.d3rlpy_peer` writes them."""
    pairs = list(zip(weights[::2], weights[1::2], strict=True))
    for k, (w, b) in enumerate(pairs):
        x = jnp.matmul(x, w.T) + b.reshape((1,) * (x.ndim - 1) + b.shape)
        x = jax.nn.relu(x) if k < len(pairs) - 1 else jnp.tanh(x)
    return x


@dataclass(frozen=True)
class Task:
    """A data set and how actors are judged.

    Attributes:
      name: of the environment.
      space: that the agents see.
      batch: the data set, rewards scaled.
      timeout: (rows,) whether the time limit ended the episode there.
      facts: for the record.
      episodes: that actors are judged by.
    """

    name: str
    space: Space
    batch: Batch
    timeout: np.ndarray
    facts: dict[str, Any]
    episodes: int

    def judged(self, agent: Any, config: Any, states: Any) -> np.ndarray:
        """Returns (seeds, episodes) of our agents, unscaled."""
        if self.name == CLASSIC:
            design = config.design(self.space)
            act = jax.jit(lambda params, x: design.act(params, x).mode())
            return np.stack([swung(act, params, self.episodes) for params in each(states.actor.params)])
        env, params, keys = self._held_out
        return np.asarray(evaluate(env, params, agent, config, self.space, states, keys)["return"])

    def judged_peer(self, weights: list[list[np.ndarray]]) -> np.ndarray:
        """The same of the peer's, given each seed's weights."""
        if self.name == CLASSIC:
            return np.stack([swung(jax.jit(perceptron), w, self.episodes) for w in weights])
        env, params, keys = self._held_out
        actor = Mode(self.space)
        found = [evaluate_policy(env, params, actor, keys, memory=tuple(map(jnp.asarray, w))) for w in weights]
        return np.concatenate([np.asarray(one["return"]) for one in found])

    @cached_property
    def _held_out(self):
        return held_out(self.name, [HELD_OUT_SEED], self.episodes, **GRIDS[self.name])


def each(params: Any) -> list[Any]:
    """Parameters of each seed of a stack."""
    return [jax.tree.map(lambda a, s=s: a[s], params) for s in range(len(jax.tree.leaves(params)[0]))]


def task_of(name: str, rows: int, episodes: int, folder: Path) -> Task:
    """A task; its data are made once and kept in the folder.

    Args:
      name: of `TASKS`.
      rows: transitions, about.
      episodes: that actors are judged by, on a grid each of another day.
      folder: for the data.
    """
    path = folder / f"data-{name}-{rows}.npz"
    if name == CLASSIC:
        space = plain_space(3, (0,))
    else:
        space = space_of(make(name, days=1, **GRIDS[name])[0], anchored=False)
    if not path.exists():
        batch, timeout, facts = pendulum(rows) if name == CLASSIC else grid(name, rows, space)
        columns: dict[str, Any] = {k: np.asarray(v) for k, v in vars(batch).items()}
        np.savez(
            path.with_suffix(".part.npz"), timeout=timeout, **columns, **{f"facts/{k}": v for k, v in facts.items()}
        )
        path.with_suffix(".part.npz").rename(path)
    with np.load(path) as stored:
        facts = {k.removeprefix("facts/"): stored[k].item() for k in stored.files if k.startswith("facts/")}
        batch = Batch(**{k: jnp.asarray(stored[k]) for k in Batch.__dataclass_fields__})
        return Task(name, space, batch, stored["timeout"], facts, episodes)


def grid(name: str, rows: int, space: Space) -> tuple[Batch, np.ndarray, dict[str, Any]]:
    """Data of a grid task: the batch, time limits, facts."""
    env, params = make(name, days=TRAINING_DAYS, seed=TRAINING_SEED, **GRIDS[name])
    behaviours = named(SHARES, env, params, feeder_of(name, **GRIDS[name]), jax.random.key(1))
    data = collect(env, params, behaviours, jax.random.key(2), max(4, rows // env.horizon))
    scale, facts = scaling(np.bincount(data.episode, np.asarray(data.transitions.reward, float)), env.horizon)
    batch = from_dataset(data, space, reward_scale=scale)
    return batch, np.asarray(data.transitions.truncated), facts


def scaling(returns: np.ndarray, steps: int) -> tuple[float, dict[str, Any]]:
    """The factor of the rewards, steps / (largest - smallest return), and facts of the data set."""
    scale = steps / float(returns.max() - returns.min())
    return scale, {
        "reward_scale": scale, "episodes": len(returns), "behaviour_return": float(returns.mean()),
        "best_logged_return": float(returns.max()),
    }  # fmt: skip


def pendulum(rows: int) -> tuple[Batch, np.ndarray, dict[str, Any]]:
    """Data of the pendulum: the batch, time limits, facts."""
    count = max(4, rows // SWING)
    rng = np.random.default_rng(0)
    noise = np.resize([*NOISE, np.inf], count)

    def behave(seen: np.ndarray) -> np.ndarray:
        wanted = np.where(np.isinf(noise), 0.0, swing_up(seen)) + np.where(np.isinf(noise), 0.0, noise) * rng.normal(
            size=count
        )
        wild = rng.uniform(-TORQUE, TORQUE, count)
        return np.clip(np.where(np.isinf(noise), wild, wanted), -TORQUE, TORQUE)[:, None]

    seen, action, reward, late = played(behave, count, seed=1)
    scale, facts = scaling(reward.sum(axis=0), SWING)

    def in_rows(a: np.ndarray) -> np.ndarray:
        return np.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:]).astype(np.float32)

    unit = np.clip(in_rows(action) / TORQUE, -LIMIT, LIMIT).astype(np.float32)
    follows = np.tile(np.append(np.ones(SWING - 1), 0.0), count).astype(np.float32)
    next_action = np.where(follows[:, None] > 0, np.roll(unit, -1, axis=0), unit)
    columns: dict[str, Any] = {
        "observation": in_rows(seen[:-1]), "action": unit, "reward": in_rows(reward) * np.float32(scale),
        "cost": np.zeros((len(unit), 1), np.float32), "next_observation": in_rows(seen[1:]),
        "next_action": next_action, "mask": np.ones(len(unit), np.float32), "follows": follows,
        "value": np.zeros(len(unit), np.float32),
    }  # fmt: skip
    return Batch(**columns), in_rows(late) > 0, facts


def swing_up(seen: np.ndarray) -> np.ndarray:
    """The torque (rows,) for observations cos, sin, speed (rows, 3), before noise."""
    angle, speed = np.arctan2(seen[:, 1], seen[:, 0]), seen[:, 2]
    energy = speed**2 / 6 + 5 * (seen[:, 0] - 1)
    push = np.where(speed == 0, TORQUE, -speed * energy)
    near = (np.abs(angle) < 0.5) & (np.abs(speed) < 3)
    return np.clip(np.where(near, -(HOLD[0] * angle + HOLD[1] * speed), push), -TORQUE, TORQUE)


def played(behave: Callable[[np.ndarray], np.ndarray], count: int, seed: int) -> tuple[np.ndarray, ...]:
    """Episodes of Gymnasium's pendulum side by side.

    Args:
      behave: torques (count, 1) for observations (count, 3).
      count: of episodes.
      seed: of where they begin.

    Returns:
      Observations (steps + 1, count, 3), torques (steps, count, 1), rewards (steps, count), time limits (steps, count).
    """
    envs = [gymnasium.make(CLASSIC) for _ in range(count)]
    seen = [np.stack([env.reset(seed=seed * 100_000 + k)[0] for k, env in enumerate(envs)])]
    actions, rewards, late = [], [], []
    for _ in range(SWING):
        actions.append(behave(seen[-1]).astype(np.float32))
        steps = [env.step(a) for env, a in zip(envs, actions[-1], strict=True)]
        seen.append(np.stack([s[0] for s in steps]))
        rewards.append([s[1] for s in steps])
        late.append([s[3] for s in steps])
    return np.stack(seen), np.stack(actions), np.array(rewards), np.array(late)


def swung(act: Callable[[Any, Any], jax.Array], params: Any, count: int) -> np.ndarray:
    """Returns (count,) of an actor on the pendulum."""

    def behave(seen):
        return TORQUE * np.asarray(act(params, jnp.asarray(seen, jnp.float32)))

    return played(behave, count, seed=2)[2].sum(axis=0)


def peer_arrays(task: Task) -> dict[str, np.ndarray]:
    """The data set as d3rlpy takes it, with the very numbers that our networks see.

    An episode of d3rlpy that the time limit ended loses its last transition, as the observation after it is not kept.
    So each such episode gets one more row, with that observation, whose action and reward nothing reads.
    """
    b = jax.tree.map(np.asarray, task.batch)
    look = jax.jit(task.space.scaled)
    terminal, late = b.mask == 0, np.asarray(task.timeout)
    ends = np.flatnonzero(late)
    seen, after = (np.asarray(look(a)) for a in (b.observation, b.next_observation))
    out = {
        "observation": np.insert(seen, ends + 1, after[ends], axis=0),
        "action": np.insert(b.action, ends + 1, 0.0, axis=0),
        "reward": np.insert(b.reward, ends + 1, 0.0),
        "terminal": np.insert(terminal, ends + 1, False).astype(np.float32),
    }  # fmt: skip
    timeout = np.zeros(len(out["reward"]), np.float32)
    timeout[ends + np.arange(len(ends)) + 1] = 1.0
    return {**{k: a.astype(np.float32) for k, a in out.items()}, "timeout": timeout}
