"""How many updates a second an agent makes here, beside what the machine's matrix products would allow.

An update's products are counted from the algorithm's definition. For a layer (k, n) and m rows

    forward (m, k) x (k, n),   weights' derivative (k, m) x (m, n),   inputs' derivative (m, n) x (n, k)

each take 2 m k n operations; the first layer's inputs need no derivative, but for an action that has one. Each shape is
timed by itself in a scan, in the same run as the updates, and

    most updates a second = 1 / sum over products (count * seconds of that shape).

An update that does nothing but its products, one after another, cannot be faster. What it needs beside them (rows drawn
at random, rectifiers, biases, Adam's moments, slow networks) is not counted.
"""

from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from algorithms.batches import Batch
from algorithms.spaces import Space
from algorithms.training import train

REPEATS = 3


class Product(NamedTuple):
    """(rows, inner) x (inner, columns); `kind` says which operand lies transposed in memory."""

    kind: str
    rows: int
    inner: int
    columns: int

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inner * self.columns


def passes(sizes: tuple[int, ...], rows: int, kinds: str, wanted: int = 0) -> Counter[Product]:
    """Products of one network.

    Args:
      sizes: of the inputs, the hidden layers and the output.
      rows: at once.
      kinds: letters of "f" forward, "w" weights' derivatives, "x" derivatives down to the first layer's inputs.
      wanted: the inputs whose derivative "x" is to give; 0 is none, as in a network's own training.
    """
    out: Counter[Product] = Counter()
    for k, (a, b) in enumerate(pairwise(sizes)):
        if "f" in kinds:
            out[Product("forward", rows, a, b)] += 1
        if "w" in kinds:
            out[Product("weights", a, rows, b)] += 1
        below = a if k else wanted
        if ("x" in kinds or "w" in kinds) and below:
            out[Product("inputs", rows, b, below)] += 1
    return out


def update_products(algorithm: str, space: Space, hidden: tuple[int, ...], rows: int, settings: Any) -> dict:
    """How often one update makes each product, {Product: count}; counts may be fractions where updates take turns.

    The definitions: I. Kostrikov et al., 2022 (iql); A. Kumar et al., 2020 (cql); S. Fujimoto and S. S. Gu, 2021
    (td3_bc); the likelihood's slope (bc). Two critics.
    """
    n, m = space.observation_size, space.action_size
    value, critic, actor = (n, *hidden, 1), (n + m, *hidden, 1), (n, *hidden, m)
    out: dict[Product, float] = {}

    def add(products: Counter[Product], times: float = 1) -> None:
        for product, count in products.items():
            out[product] = out.get(product, 0) + count * times

    if algorithm == "bc":
        add(passes(actor, rows, "fw"))
    elif algorithm == "iql":
        add(passes(critic, rows, "f"), 2)  # slow critics at (s, a)
        add(passes(value, rows, "fw"))
        add(passes(value, rows, "f"), 2)  # the new V at s and s'
        add(passes(critic, rows, "fw"), 2)
        add(passes(actor, rows, "fw"))
    elif algorithm == "td3_bc":
        add(passes(actor, rows, "f"))  # the slow actor at s'
        add(passes(critic, rows, "f"), 2)
        add(passes(critic, rows, "fw"), 2)
        turn = 1 / settings["delay"]
        add(passes(actor, rows, "fw"), turn)
        add(passes(critic, rows, "fx", m), turn)  # through the first critic
    elif algorithm == "cql":
        wide = (n, *hidden, 2 * m)  # mean and width
        add(passes(wide, rows, "f"))  # at s'
        add(passes(wide, rows, "fw"))
        add(passes(critic, rows, "f"), 2)  # slow critics at s'
        add(passes(critic, rows * (1 + 3 * settings["samples"]), "fw"), 2)
        add(passes(critic, rows, "fx", m), 2)  # the actor's, through both
    else:
        raise ValueError(f"the products of {algorithm!r} are not known: iql, cql, td3_bc or bc")
    return out


def operations(products: dict) -> float:
    """Of all products of an update."""
    return sum(product.operations * count for product, count in products.items())


def most(products: dict, known: dict, seconds: float = 0.15) -> dict[str, float]:
    """What the machine's products allow; `known` keeps those of shapes that were timed, for about so many seconds."""
    for product in products:
        if product not in known:
            known[product] = seconds_of(product, seconds)
    each = sum(known[product] * count for product, count in products.items())
    work = operations(products)
    return {"operations_per_update": work, "gflop_per_s": work / each / 1e9, "most_updates_per_s": 1 / each}


def seconds_of(product: Product, seconds: float) -> float:
    """Of one product in a scan, the best of some runs of about so long."""
    kind, rows, inner, columns = product
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(rows, inner)), rng.normal(size=(inner, columns))
    # As they lie in memory: activations (m, k), weights (k, n), output derivatives (m, n).
    left, right = (left.T if kind == "weights" else left), (right.T if kind == "inputs" else right)
    axes = ((0,) if kind == "weights" else (1,), (1,) if kind == "inputs" else (0,))
    count = max(4, round(seconds * 5e10 / max(product.operations, 2e6)))

    @jax.jit
    def run(a, b, out):
        def body(carry, _):
            a, b, out = carry
            # An operand depends on the product before, so that none is left out or moved out of the loop.
            a = a.at[0, 0].add(1e-30 * out[0, 0])
            return (a, b, jax.lax.dot_general(a, b, (axes, ((), ())))), None

        return jax.lax.scan(body, (a, b, out), None, length=count)[0][2]

    a, b = jnp.asarray(left, jnp.float32), jnp.asarray(right, jnp.float32)
    out = jnp.zeros((rows, columns), jnp.float32)
    run(a, b, out).block_until_ready()
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run(a, b, out).block_until_ready()
        found.append((time.perf_counter() - started) / count)
    return min(found)


def updates_per_s(
    agent: Any, config: Any, space: Space, data: Batch, *, seeds: int, chunk: int, batch_size: int, chunks: int = 4
) -> float:
    """Of all seeds together, the median chunk; compiling, which the first chunk does, is left out."""
    at: list[float] = []
    train(
        agent, config, space, data, jax.random.key(0), updates=chunk * chunks, seeds=seeds, every=chunk,
        batch_size=batch_size, seen=lambda done, states, metrics: at.append(time.perf_counter()),
    )  # fmt: skip
    return seeds * chunk / float(np.median(np.diff(at)))
