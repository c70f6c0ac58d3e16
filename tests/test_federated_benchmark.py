"""The speed benchmark of federated rounds at its smallest: what it measures is what it says. No time is asserted."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import federated_speed
from benchmarks.federated_speed import Load, distance, plain, rounds, rows, setting, steps_alone
from benchmarks.federated_speed_page import page
from federated.round import spread

TINY = Load(clients=6, steps=3, batch=4, hidden=(5, 5), at_once=2)


def by_hand(load, first):
    """One client's parameters after Adam's steps (D. P. Kingma and J. Ba, 2015), slopes by finite differences."""
    observation, action = (a[0].astype(float) for a in rows(load))
    names = sorted(first)
    at = np.cumsum([0] + [first[n].size for n in names])

    def loss(flat, here):
        w = {n: flat[i:j].reshape(first[n].shape) for n, i, j in zip(names, at[:-1], at[1:], strict=True)}
        h = observation[here]
        for k in range(len(load.hidden)):
            h = np.maximum(h @ w[f"w{k}"].T + w[f"b{k}"], 0)
        mean = np.tanh(h @ w[f"w{len(load.hidden)}"].T + w[f"b{len(load.hidden)}"])
        s = np.exp(w["log_std"])
        return np.mean(np.sum(0.5 * ((action[here] - mean) / s) ** 2 + np.log(s) + 0.5 * np.log(2 * np.pi), axis=1))

    x = np.concatenate([np.asarray(first[n], float).ravel() for n in names])
    m, v = np.zeros_like(x), np.zeros_like(x)
    for k in range(load.steps):
        here = slice(k * load.batch, (k + 1) * load.batch)
        slope = np.zeros_like(x)
        for i in range(len(x)):
            step = np.zeros_like(x)
            step[i] = 1e-5
            slope[i] = (loss(x + step, here) - loss(x - step, here)) / 2e-5
        m, v = 0.9 * m + 0.1 * slope, 0.999 * v + 0.001 * slope**2
        x = x - federated_speed.RATE * (m / (1 - 0.9 ** (k + 1))) / (np.sqrt(v / (1 - 0.999 ** (k + 1))) + 1e-8)
    return {n: x[i:j].reshape(first[n].shape) for n, i, j in zip(names, at[:-1], at[1:], strict=True)}


def test_the_work_is_what_the_peers_are_asked_for():
    """A round of one client is its steps of Adam on its rows in order, clipped."""
    load = dataclasses.replace(TINY, clients=1)
    first = plain(setting(load)[1].shared)
    expected = by_hand(load, first)
    update = {n: expected[n] - first[n] for n in first}
    size = np.sqrt(sum(np.sum(u**2) for u in update.values()))
    scale = min(1.0, federated_speed.BOUND / size)
    expected = {n: first[n] + scale * update[n] for n in first}
    found = plain(rounds(load, 1, noise=0.0)[1])
    assert distance(expected, found, first) < 1e-3


def test_every_round_begins_with_a_new_optimiser():
    _, server, cohorts = setting(TINY)
    assert TINY.parameters == sum(a.size for a in jax.tree.leaves(server.shared))
    assert federated_speed.LARGE.parameters == 85_292 and federated_speed.SMALL.parameters == 972
    run = jax.jit(steps_alone(TINY))
    state = run(jax.random.key(0), server, cohorts)[0]
    after = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), state)
    moved = (cohorts[0].replace(clients=cohorts[0].clients.replace(state=after)),)
    jax.tree.map(
        np.testing.assert_array_equal, run(jax.random.key(0), server, moved)[0].actor.params, state.actor.params
    )


def test_the_steps_alone_are_those_of_the_round():
    how, server, cohorts = setting(TINY)
    key = jax.random.key(1)
    alone = jax.jit(steps_alone(TINY))(key, server, cohorts)[0]
    _, (clients,), _ = jax.jit(spread(how))(key, jax.random.key(2), server, cohorts)
    assert alone.step.shape == (3, 2) and (np.asarray(alone.step) == TINY.steps).all()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a.reshape(b.shape), b, rtol=1e-5, atol=1e-7), alone, clients.state
    )


def test_a_distance_is_a_share_of_the_way():
    first, ours = {"a": np.zeros(2)}, {"a": np.array([3.0, 4.0])}
    assert distance({"a": np.array([3.0, 5.0])}, ours, first) == pytest.approx(0.2)
    assert distance(ours, ours, first) == 0


def test_the_script_writes_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(federated_speed, "LOADS", (TINY,))
    monkeypatch.setattr(federated_speed, "SIZES", (2,))
    monkeypatch.setattr(federated_speed, "sized", federated_speed.one_size)
    assert federated_speed.main(["--rounds", "1", "--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "federated_speed.json").read_text())
    (found,) = record["overheads"]
    assert found["clients"] == 6 and found["least"] <= found["overhead"] <= found["greatest"] and found["steps_s"] > 0
    assert record["sizes"][0]["clients"] == 2 and record["sizes"][0]["peak_mib"] > 10 and "beside" not in record
    assert (tmp_path / "federated_speed.md").read_text() == page(record)


def test_the_page_does_its_sums():
    def row(clients, **more):
        return {"parameters": 1234, "clients": clients, "steps": 10, "batch": 64, "compile_s": 2.0, **more}

    peers = [
        {"peer": "pfl", "processes": n, "threads": 1, "rounds_per_s": r, "gap": 2e-5, "versions": {"pfl": "0"}}
        for n, r in ((1, 1.0), (2, 1.25))
    ]
    peers.append({**peers[0], "peer": "flower", "rounds_per_s": 0.1, "versions": {"flwr": "9.9"}})
    record = {
        "command": "c", "machine": "m", "cores": 2, "versions": {"jax": "1"}, "observations": 60, "actions": 6,
        "rate": 3e-4, "bound": 0.1, "noise": 1.0,
        "overheads": [row(64, steps_s=0.1, round_s=0.118, overhead=0.18, least=0.1, greatest=0.25,
                          compile_steps_s=1.0, compile_round_s=3.0)],
        "beside": [row(64, rounds_per_s=2.5, products_rounds_per_s=5.0, peers=peers)],
        "sizes": [row(100, round_s=0.01, peak_mib=200.0), row(10_000, round_s=1.2, peak_mib=2000.0)],
    }  # fmt: skip
    text = page(record)
    assert "| 100.0 | 118.0 | 18.0 (10.0 to 25.0) | 1.0 | 3.0 |" in text and "for 1,234 parameters: that is met" in text
    assert "| pfl-research | 2 x 1 | 1.25 | 2.0 | 2e-05 |" in text and "flwr 9.9" in text
    assert "2.0 times pfl-research the fastest way, 20 was asked: missed (the products alone would allow 4.0)" in text
    assert "25.0 times Flower the fastest way, 20 was asked: met" in text
    assert "A client of 10,000 costs 1.20 times the time of one of 100." in text
    missed = {**record, "overheads": [{**record["overheads"][0], "overhead": 0.21}]}
    assert "that is missed" in page(missed) and "Flower" not in page({k: v for k, v in missed.items() if k != "beside"})
