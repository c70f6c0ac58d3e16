"""The peer's half of `benchmarks.offline_rl`: d3rlpy (T. Seno and M. Imai, JMLR 2022), in an environment of its own.

    .venv-d3rlpy/bin/python benchmarks/d3rlpy_peer.py request.json

Knows nothing of gridjax: it reads arrays and settings, trains by `fit` as d3rlpy's documentation has it, without
progress bar, evaluators or log files, and writes what the actors have learned as plain weights:

    action = tanh(W_3 relu(W_2 relu(W_1 x + b_1) + b_2) + b_3)

The request: "data" (an archive with observation, action, reward, terminal, timeout), "algorithm", "settings" in
gridjax's names, "hidden", "batch_size", "seeds", "threads", "out" (the answer's path without suffix), and either
"updates" for each seed or "seconds" for a measurement of speed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

# gridjax's names on the left, d3rlpy's on the right; CQL's temperature goes at the actor's rate.
NAMES = {
    "iql": {
        "discount": "gamma", "polyak": "tau", "rate": "critic_learning_rate", "actor_rate": "actor_learning_rate",
        "expectile": "expectile", "temperature": "weight_temp",
    },
    "cql": {
        "discount": "gamma", "polyak": "tau", "rate": "critic_learning_rate",
        "actor_rate": "actor_learning_rate temp_learning_rate",
        "weight": "conservative_weight", "samples": "n_action_samples",
    },
    "td3_bc": {
        "discount": "gamma", "polyak": "tau", "rate": "critic_learning_rate", "actor_rate": "actor_learning_rate",
        "alpha": "alpha", "noise": "target_smoothing_sigma", "noise_clip": "target_smoothing_clip",
        "delay": "update_actor_interval",
    },
    "bc": {"rate": "learning_rate"},
}  # fmt: skip
# What gridjax has no name for. A rate of zero keeps the factor of CQL's penalty at its first value, one.
FIXED: dict[str, dict[str, Any]] = {
    "iql": {"n_critics": 2, "max_weight": 100.0},
    "cql": {"n_critics": 2, "alpha_learning_rate": 0.0, "initial_alpha": 1.0, "soft_q_backup": False},
    "td3_bc": {"n_critics": 2},
    "bc": {"policy_type": "deterministic"},
}
CLASSES = {"iql": "IQLConfig", "cql": "CQLConfig", "td3_bc": "TD3PlusBCConfig", "bc": "BCConfig"}
ENCODERS = {"iql": ("actor", "critic", "value"), "cql": ("actor", "critic"), "td3_bc": ("actor", "critic"), "bc": ()}
CHECKED = 100  # observations at which the weights are compared with `predict`
TRIAL = 30  # updates before a measurement of speed


def keywords(algorithm: str, settings: dict[str, Any]) -> dict[str, Any]:
    """d3rlpy's arguments for settings in gridjax's names.

    Raises:
      KeyError: a setting that d3rlpy has no name for.
    """
    pairs = [(theirs, value) for name, value in settings.items() for theirs in NAMES[algorithm][name].split()]
    return dict(pairs) | FIXED[algorithm]


def made(d3rlpy: Any, request: dict[str, Any]) -> Any:
    """A new agent of d3rlpy."""
    algorithm = request["algorithm"]
    factory = d3rlpy.models.VectorEncoderFactory(hidden_units=request["hidden"])
    parts = [f"{part}_encoder_factory" for part in ENCODERS[algorithm]] or ["encoder_factory"]
    named = dict.fromkeys(parts, factory) | keywords(algorithm, request["settings"])
    config = getattr(d3rlpy.algos, CLASSES[algorithm])(batch_size=request["batch_size"], **named)
    return config.create(device="cpu:0")


def dataset_of(d3rlpy: Any, path: str) -> Any:
    """The replay buffer, in memory."""
    with np.load(path) as data:
        arrays = {name: data[name] for name in ("observation", "action", "reward", "terminal", "timeout")}
    return d3rlpy.dataset.MDPDataset(
        observations=arrays["observation"], actions=arrays["action"], rewards=arrays["reward"],
        terminals=arrays["terminal"], timeouts=arrays["timeout"],
        action_space=d3rlpy.ActionSpace.CONTINUOUS, action_size=arrays["action"].shape[1],
    )  # fmt: skip


def fitted(d3rlpy: Any, agent: Any, data: Any, updates: int) -> float:
    """Seconds of so many updates."""
    started = time.perf_counter()
    agent.fit(
        data, n_steps=updates, n_steps_per_epoch=updates, show_progress=False, save_interval=updates,
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )  # fmt: skip
    return time.perf_counter() - started


def weights(agent: Any) -> list[np.ndarray]:
    """W_1 (out, in), b_1 (out,), W_2, ... of the actor."""
    policy = agent.impl.policy
    last = policy._fc if hasattr(policy, "_fc") else policy._mu
    layers = [m for m in policy._encoder.modules() if type(m).__name__ == "Linear"] + [last]
    return [a.detach().numpy().copy() for layer in layers for a in (layer.weight, layer.bias)]


def acted(parts: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    """The actions (rows, action_size) of an actor at observations (rows, observation_size)."""
    for k in range(0, len(parts) - 2, 2):
        x = np.maximum(x @ parts[k].T + parts[k + 1], 0.0)
    return np.tanh(x @ parts[-2].T + parts[-1])


def trained(d3rlpy: Any, data: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Trains each seed for "updates" updates; writes the actors' weights beside the answer."""
    seconds, gaps, kept = [], [], {}
    for seed in request["seeds"]:
        d3rlpy.seed(seed)
        agent = made(d3rlpy, request)
        agent.build_with_dataset(data)
        seconds.append(fitted(d3rlpy, agent, data, request["updates"]))
        parts = weights(agent)
        with np.load(request["data"]) as arrays:
            seen = arrays["observation"][:: max(1, len(arrays["observation"]) // CHECKED)][:CHECKED]
        gaps.append(float(np.max(np.abs(acted(parts, seen) - agent.predict(seen)))))
        kept |= {f"{seed}/{k}": a for k, a in enumerate(parts)}
    np.savez(request["out"] + ".npz", **kept)
    return {"seconds": seconds, "largest_gap_of_actions": max(gaps), "observations_checked": len(seen)}


def timed(d3rlpy: Any, data: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Updates a second, measured for about "seconds"."""
    agent = made(d3rlpy, request)
    agent.build_with_dataset(data)
    fitted(d3rlpy, agent, data, 5)
    trial = fitted(d3rlpy, agent, data, TRIAL) / TRIAL
    updates = max(TRIAL, round(request["seconds"] / trial))
    return {"updates": updates, "updates_per_s": updates / fitted(d3rlpy, agent, data, updates)}


def main() -> None:
    import d3rlpy
    import structlog
    import torch

    request = json.loads(Path(sys.argv[1]).read_text())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    torch.set_num_threads(request["threads"])
    data = dataset_of(d3rlpy, request["data"])
    answer = trained(d3rlpy, data, request) if "updates" in request else timed(d3rlpy, data, request)
    answer |= {
        "transitions": int(data.transition_count),
        "threads": torch.get_num_threads(),
        "versions": {"d3rlpy": d3rlpy.__version__, "torch": torch.__version__, "numpy": np.__version__},
    }
    Path(request["out"] + ".json").write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
