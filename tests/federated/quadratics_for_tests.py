"""Clients whose loss is a half of |theta - goal_i|^2, averaged over their rows."""

import jax
import jax.numpy as jnp
import numpy as np

from federated.block import Cohort
from federated.round import ready
from federated.work import Clients, Work, padded

RATE = 0.1


def gradient(theta, data, rows):
    """Mean over the own rows of theta - goal."""
    own = (jnp.arange(data["goal"].shape[0]) < rows)[:, None]
    return jax.tree.map(
        lambda a: (
            a - jnp.sum(jnp.where(own, data["goal"], 0.0), axis=0) * data["scale"][0] / rows if a.ndim else a * 0.0
        ),
        theta,
    )


def step(key, state, data, rows):
    del key
    g = gradient(state["theta"], data, rows)
    loss = 0.5 * sum(jnp.sum(a**2) for a in jax.tree.leaves(g))
    theta = jax.tree.map(lambda a, b: a - RATE * b, state["theta"], g)
    return {"theta": theta, "seen": state["seen"] + 1}, {"loss": loss}


def work(**options):
    return Work(
        step, lambda state: state["theta"], lambda state, theta: {**state, "theta": theta}, **{"rate": RATE, **options}
    )


def clients(goals):
    """Goals: one array (rows, 3) for each client."""
    data, rows = padded([{"goal": np.asarray(g, float), "scale": np.ones(len(g))} for g in goals])
    theta = {"a": jnp.zeros((len(goals), 3))}
    return Clients(data, rows, {"theta": theta, "seen": jnp.zeros(len(goals), int)})


def cohort(federation, server, these, present=None):
    count = these.rows.shape[0]
    here = jnp.ones(count) if present is None else jnp.asarray(present, float)
    return (Cohort(ready(federation, server, these), jnp.arange(count), here),)


SHARED = {"a": jnp.zeros(3)}
