"""stable-baselines3 (A. Raffin et al., JMLR 2021) trained on gridjax's environments.

    make bench-sb3                                   # its own environment .venv-sb3; writes docs/stable_baselines3.*
    python -m benchmarks.sb3 --quick   # a minute, to see that it runs; writes to demo_out/bench/

PPO as it comes, twice with the same settings: on `gymnasium.make("gridjax/...")`, one environment at a time, unchanged;
and on gridjax's natively batched environment behind `GridVecEnv`, which only translates between the interfaces of
Gymnasium's and stable-baselines3's vector environments. The return is judged before and after, on days that training
never saw, the policy's mean or likeliest action taken; beside it the policies that learn nothing. Each draws its
episodes from the same held-out days, with draws of its own: the differences are not paired.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import jax
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from gridjax.env.collection import play
from gridjax.env.gym import GridVectorEnv
from gridjax.env.policies import classical, nothing, random
from gridjax.env.tasks import feeder_of, make

HELD_OUT = 1000  # seed of the days that no training sees
FOLDER = Path(__file__).parent.parent


class GridVecEnv(VecEnv):
    """stable-baselines3's view of a `gridjax.env.gym.GridVectorEnv`, all of whose environments step in one call."""

    def __init__(self, inner: GridVectorEnv) -> None:
        self.inner = inner
        super().__init__(inner.num_envs, inner.single_observation_space, inner.single_action_space)
        self._asked: Any = None

    def reset(self):
        """Fresh episodes everywhere."""
        seeds = [s for s in self._seeds if s is not None]
        self._reset_seeds()
        return self.inner.reset(seed=seeds[0] if seeds else None)[0]

    def step_async(self, actions) -> None:
        """Keeps the actions for `step_wait`."""
        self._asked = actions

    def step_wait(self):
        """One step of all environments; finished ones have started afresh."""
        obs, reward, terminated, truncated, info = self.inner.step(self._asked)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(t)} for t in truncated]
        for k in np.flatnonzero(done):
            infos[k]["terminal_observation"] = info["final_obs"][k]
        return obs, reward.astype(np.float32), done, infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name, indices=None):
        """The same attribute for each environment asked for."""
        return [getattr(self.inner, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name, value, indices=None) -> None:
        """Not possible for single ones."""
        raise NotImplementedError("the environments are one: make them with the options that you want")

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        """Not possible for single ones."""
        raise NotImplementedError("the environments are one: call methods of `inner`")

    def env_is_wrapped(self, wrapper_class, indices=None):
        """They are not."""
        return [False] * len(list(self._get_indices(indices)))


def judged(model: PPO, name: str, days: int, options: dict[str, Any]) -> list[float]:
    """Returns of as many episodes as there are held-out days, on days drawn from these with replacement."""
    envs = GridVectorEnv(name, num_envs=days, days=days, seed=HELD_OUT, **options)
    obs, _ = envs.reset(seed=0)
    total, going = np.zeros(days), np.ones(days, bool)
    while going.any():
        obs, reward, terminated, truncated, _ = envs.step(model.predict(obs, deterministic=True)[0])
        total += np.where(going, reward, 0.0)
        going &= ~(terminated | truncated)
    return total.tolist()


def baselines(name: str, days: int, options: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Returns of policies that learn nothing on held-out days, drawn likewise and the same for all of these."""
    env, params = make(name, days=days, seed=HELD_OUT, **options)
    feeder = feeder_of(name, **options)
    policies = {"nothing": nothing(env, params), "random": random(env), "classical": classical(env, params, feeder)}
    keys = jax.random.split(jax.random.key(0), days)
    out = {}
    for what, policy in policies.items():
        seen, _ = play(env, policy, keys, params)
        reward, ended = np.asarray(seen.reward), np.asarray(seen.terminated | seen.truncated)
        running = np.cumsum(ended, axis=1) - ended == 0
        out[what] = figures((reward * running).sum(axis=1).tolist())
    return out


def figures(returns: list[float]) -> dict[str, float]:
    """Mean and its 95 % interval, from the normal distribution."""
    a = np.asarray(returns)
    return {"mean": float(a.mean()), "interval": float(1.96 * a.std(ddof=1) / np.sqrt(len(a))), "episodes": len(a)}


def trained(what: str, make_env: Any, name: str, steps: int, rollout: int, asked: argparse.Namespace) -> dict[str, Any]:
    """One training with PPO's own settings but for the size of its rollouts."""
    env = make_env()
    model = PPO("MlpPolicy", env, n_steps=rollout, batch_size=asked.minibatch, seed=asked.seed, device="cpu", verbose=0)
    options: dict[str, Any] = dict(hours=asked.hours)
    before = judged(model, name, asked.held_out, options)
    model.learn(rollout * model.n_envs)  # compiles; not timed
    started, at = time.perf_counter(), model.num_timesteps
    model.learn(max(steps - at, 1), reset_num_timesteps=False)
    seconds = time.perf_counter() - started
    after = judged(model, name, asked.held_out, options)
    env.close()
    out = {
        "environment": what, "environments_side_by_side": int(model.n_envs), "steps": int(model.num_timesteps),
        "timed_steps": int(model.num_timesteps - at), "seconds": seconds,
        "steps_per_s": (model.num_timesteps - at) / seconds, "before": figures(before), "after": figures(after),
    }  # fmt: skip
    print(
        f"{what}: {out['steps']:,} steps, {out['steps_per_s']:,.0f} steps/s with learning; return "
        f"{out['before']['mean']:.2f} before, {out['after']['mean']:.2f} after",
        flush=True,
    )
    return out


def bare(name: str, count: int, asked: argparse.Namespace) -> float:
    """Steps a second of the vector environment alone, through NumPy, with random actions."""
    envs = GridVectorEnv(name, num_envs=count, days=asked.days, hours=asked.hours)
    envs.reset(seed=0)
    action = envs.action_space.sample()
    envs.step(action)
    started, steps = time.perf_counter(), 48
    for _ in range(steps):
        envs.step(action)
    return count * steps / (time.perf_counter() - started)


def page(record: dict[str, Any]) -> str:
    """The figures as Markdown."""
    asked, v = record["settings"], record["versions"]
    lines = [
        "# stable-baselines3 on gridjax",
        "",
        f"Written by `{record['command']}` on {record['machine']}: "
        + ", ".join(f"{name} {number}" for name, number in v.items())
        + "; raw figures: [stable_baselines3.json](stable_baselines3.json).",
        "",
        f"PPO with stable-baselines3's own settings (`MlpPolicy`, minibatches of {asked['minibatch']}, seed "
        f"{asked['seed']}, CPU) on `gridjax/{asked['name']}`, {asked['days']} days of steps of {asked['hours']:g} h. "
        f"Returns a day: mean and 95 % interval over {asked['held_out']} episodes, each on one of as many days, drawn "
        "with replacement, that training never saw, the likeliest "
        "action taken. One seed: this shows that it trains and how fast, not how well PPO can do. Steps/s include "
        f"PPO's own learning, and not compiling. {asked['note']}",
        "",
        "| trained on | side by side | steps | steps/s | return before | after |",
        "|---|---|---|---|---|---|",
    ]
    show = "{mean:.2f} ± {interval:.2f}".format_map
    for run in record["runs"]:
        lines.append(
            f"| {run['environment']} | {run['environments_side_by_side']} | {run['steps']:,} | "
            f"{run['steps_per_s']:,.0f} | {show(run['before'])} | {show(run['after'])} |"
        )
    lines += ["", f"The vector environment alone, without learning: {record['bare_steps_per_s']:,.0f} steps/s.", ""]
    lines += ["| learns nothing, same feeder and held-out days | return |", "|---|---|"]
    lines += [f"| {what} | {show(value)} |" for what, value in record["baselines"].items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="VoltVar-ieee13-v0")
    parser.add_argument("--steps", type=int, default=200_000, help="on the vector environment")
    parser.add_argument("--single-steps", type=int, default=20_000, help="on the single environment")
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--minibatch", type=int, default=256)
    parser.add_argument("--days", type=int, default=100)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--note", default="", help="a sentence for the page, on what else the machine did")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=None, help="a folder; default: docs, with --quick demo_out/bench")
    asked = parser.parse_args()
    if asked.quick:
        asked.steps, asked.single_steps, asked.held_out, asked.days = 12_000, 3_000, 20, 10
    out = asked.out or FOLDER / ("demo_out/bench" if asked.quick else "docs")
    torch.set_num_threads(1)  # the networks are too small to share
    options: dict[str, Any] = dict(days=asked.days, hours=asked.hours)
    single = f"gridjax.env.gym:gridjax/{asked.name}"
    runs = [
        trained(
            f'`gymnasium.make("gridjax/{asked.name}")`', lambda: gymnasium.make(single, **options), asked.name,
            asked.single_steps, 2048, asked,
        ),
        trained(
            "the batched one behind `GridVecEnv`",
            lambda: GridVecEnv(GridVectorEnv(asked.name, num_envs=asked.num_envs, **options)), asked.name,
            asked.steps, 48, asked,
        ),
    ]  # fmt: skip
    packages = ("gridjax", "stable-baselines3", "torch", "gymnasium", "jax", "numpy")
    record = {
        "command": shlex.join(["python", "-m", "benchmarks.sb3", *sys.argv[1:]]),
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "settings": {k: v for k, v in vars(asked).items() if k not in ("out", "quick")},
        "runs": runs,
        "bare_steps_per_s": bare(asked.name, asked.num_envs, asked),
        "baselines": baselines(asked.name, asked.held_out, dict(hours=asked.hours)),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "stable_baselines3.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "stable_baselines3.md").write_text(page(record))
    print(page(record))


if __name__ == "__main__":
    main()
