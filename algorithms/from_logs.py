"""What agents are worth from logs alone, beside what the simulator says of the same first states.

Two policies of an agent are evaluated: its modes, by fitted Q evaluation; and its draws, by all estimators, as weights
need a policy that takes every action with some chance. The truth is played from the logged episodes' own first states
(their seeds are in the data set), with disturbances of its own. All figures are sums of rewards, without a discount, to
each episode's end.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from algorithms import fitted, off_policy
from algorithms.comparison import shown
from algorithms.evaluation import evaluate
from algorithms.learning import Agent
from algorithms.spaces import Space
from algorithms.statistics import bootstrap, mean
from gridjax.env.datasets import Dataset, returns
from gridjax.env.environment import Environment

SEED = 0


def start_keys(data: Dataset) -> jax.Array:
    """Keys whose resets begin the logged episodes, (episodes,); see `gridjax.env.collection`."""
    return jax.vmap(lambda seed: jax.random.split(jax.random.key(seed))[0])(jnp.asarray(data.seed))


def estimates(
    env: Environment,
    params: Any,
    agent: Agent,
    config: Any,
    space: Space,
    states: Any,
    data: Dataset,
    *,
    updates: int = 20_000,
    samples: int = 4,
) -> dict[str, Any]:
    """All estimates of all seeds of an agent, with their errors against the simulator.

    Args:
      env: the environment that the data set was logged in.
      params: its parameters then.
      agent: as for `algorithms.evaluation.evaluate`, as are the next three.
      config: of the agent.
      space: of the environment.
      states: of all seeds.
      data: the logs.
      updates: of each fitted critic.
      samples: draws of the policy in its backups.

    Returns:
      "rows", each with "seed", "policy" ("mode" or "drawn"), "estimator", "estimate" and "truth" [value, low, high] and
      "error" (estimate less truth); "behaviour", the mean of the logged returns with its interval; "effective episodes"
      of each seed's weights; and "notes", on what cannot be estimated or means nothing, and why.
    """
    design, actors = config.design(space), states.actor.params
    keys = start_keys(data)
    seeds = states.step.shape[0]
    truths = {
        policy: evaluate(env, params, agent, config, space, states, keys, drawn=policy == "drawn")["return"]
        for policy in ("mode", "drawn")
    }
    rows: list[dict[str, Any]] = []
    notes: list[str] = []
    first, key = data.step == 0, jax.random.key(SEED)

    def add(policy: str, estimator: str, seed: int, found: Any) -> None:
        truth = bootstrap(truths[policy][seed : seed + 1], mean, seed=SEED)
        about = {"seed": seed, "policy": policy, "estimator": estimator}
        rows.append({**about, "estimate": list(found), "truth": list(truth), "error": found.value - truth.value})

    critics = fitted.Config(updates=updates)
    for policy in ("mode", "drawn"):
        critics = dataclasses.replace(critics, samples=0 if policy == "mode" else samples)
        fit, scale = fitted.fit(key, design, actors, data, space, critics)
        q, v = fitted.values(key, fit, scale, design, actors, data, space, critics)
        for seed in range(seeds):
            add(policy, "FQE", seed, bootstrap(v[seed : seed + 1, first], mean, seed=SEED))
    reason = off_policy.unweighable(data)
    sizes: list[float] = []
    if reason:
        notes.append(f"no weights: {reason}")
    else:
        log_prob = off_policy.log_probs(design, actors, data, space)
        for seed in range(seeds):
            log = off_policy.log_of(data, log_prob[seed], q[seed], v[seed])
            sizes.append(off_policy.effective_size(log))
            for name in off_policy.ESTIMATORS:
                add("drawn", name, seed, off_policy.estimate(name, log, seed=SEED))
    if sizes and min(sizes) < off_policy.LEAST:
        notes.append(
            f"the weights leave {min(sizes):.2g} effective episodes of {data.episodes}, fewer than "
            f"{off_policy.LEAST:g}: {', '.join(off_policy.ESTIMATORS)} mean nothing there; the agent is too far from "
            "the behaviour for its horizon"
        )
    logged = bootstrap(returns(data)[None], mean, seed=SEED)
    return {"rows": rows, "behaviour": list(logged), "effective episodes": sizes, "notes": notes}


def estimates_table(title: str, found: dict[str, Any]) -> Table:
    """A row for each policy and estimator: means over seeds, and the seeds' errors."""
    out = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for k, head in enumerate(("policy", "estimator", "estimate", "truth", "mean error", "largest error")):
        out.add_column(Text(head), justify="right" if k > 1 else "left", overflow="fold")
    out.add_row("behaviour", "logged", shown(found["behaviour"]), "", "", "")
    for policy, estimator in dict.fromkeys((r["policy"], r["estimator"]) for r in found["rows"]):
        mine = [r for r in found["rows"] if (r["policy"], r["estimator"]) == (policy, estimator)]
        of = {what: np.mean([r[what] for r in mine], axis=0) for what in ("estimate", "truth")}
        error = np.array([r["error"] for r in mine])
        worst = error[np.argmax(np.abs(error))]
        cells = (shown(of["estimate"]), shown(of["truth"]), f"{error.mean():.4g}", f"{worst:.4g}")
        out.add_row(policy, estimator, *map(Text, cells))
    if found["effective episodes"]:
        out.caption = f"effective episodes: {', '.join(f'{n:.3g}' for n in found['effective episodes'])}"
    return out
