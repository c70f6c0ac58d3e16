"""What a client does in a round: some steps of its own on its own data, from the parameters that all share.

With theta the server's parameters, theta_k the client's after k steps, g_k whatever its step does to them, and eta the
step's size,

    theta_0 = theta,    theta_{k+1} = theta_k + g_k - eta (mu (theta_k - theta) + c - c_i)

mu > 0 is FedProx's pull to the server (T. Li et al., "Federated optimization in heterogeneous networks", MLSys 2020,
eq. 2; exact for a gradient step of size eta, and for other optimisers a pull beside theirs, as decoupled weight decay
is). c - c_i is SCAFFOLD's correction (S. P. Karimireddy et al., ICML 2020, alg. 1), whose variates afterwards are
c_i + (theta - theta_K) / (K eta) - c (option II).

A client's state is any pytree: optimisers, critics, a head of its own. `part` says what of it is shared; all else stays
with the client from round to round. So personal heads, or an actor without its critics, are a choice of `part`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
Metrics = dict[str, jax.Array]


@dataclass(frozen=True)
class Work:
    """The work of clients of one kind; static.

    Attributes:
      step: `(key, state, data, rows) -> (state, metrics)`, one step on a client's data, leaves (most rows, ...), of
        which the first `rows` are its own and the others padding.
      part: `(state) -> shared`, what is shared.
      join: `(state, shared) -> state` with it replaced.
      steps: K.
      rate: eta, the size of a step, for `prox` and SCAFFOLD.
      prox: mu.
      merit: `(metrics) -> ()` how good the client's result is, for `federated.aggregation.Merit`.
    """

    step: Callable[[jax.Array, Tree, Tree, jax.Array], tuple[Tree, Metrics]]
    part: Callable[[Tree], Tree]
    join: Callable[[Tree, Tree], Tree]
    steps: int = 1
    rate: float = 0.0
    prox: float = 0.0
    merit: Callable[[Metrics], jax.Array] | None = None

    def __post_init__(self) -> None:
        """Refuses what makes no sense."""
        if self.steps < 1 or self.prox < 0 or self.rate < 0:
            raise ValueError(
                f"steps {self.steps}, rate {self.rate:g}, prox {self.prox:g}: none may be below 0, or 0 steps"
            )
        if self.prox and not self.rate:
            raise ValueError("prox needs the size of a step: give rate")


@flax.struct.dataclass
class Clients:
    """Owners of data, leading axis (clients,).

    Attributes:
      data: leaves (clients, most rows, ...).
      rows: (clients,) of each one's own; the rest is padding.
      state: what each keeps; its shared part is replaced in every round.
      variate: c_i of SCAFFOLD, as the shared parameters; () without it.
      residual: what compression has left out so far, likewise.
    """

    data: Tree
    rows: jax.Array
    state: Tree
    variate: Tree = ()
    residual: Tree = ()


def padded(parts: list[Tree]) -> tuple[Tree, jax.Array]:
    """Data of clients of different sizes, each leaf (rows, ...), as leaves (clients, most rows, ...), and the rows.

    Padding is zeros, which no sampling by `rows` ever sees.

    Raises:
      ValueError: no client, one without rows, or leaves of one client that differ in rows.
    """
    sizes = [{np.shape(leaf)[0] for leaf in jax.tree.leaves(part)} for part in parts]
    for k, size in enumerate(sizes):
        if len(size) != 1 or 0 in size:
            raise ValueError(f"client {k}: leaves of {sorted(size)} rows; give each the same number, at least one")
    if not parts:
        raise ValueError("no clients: give at least one")
    rows = [size.pop() for size in sizes]

    def stacked(*leaves):
        wide = [np.pad(a, [(0, max(rows) - len(a))] + [(0, 0)] * (np.ndim(a) - 1)) for a in map(np.asarray, leaves)]
        return jnp.asarray(np.stack(wide))

    return jax.tree.map(stacked, *parts), jnp.asarray(rows, jnp.int32)


def take(clients: Clients, ids: jax.Array) -> Clients:
    """Some clients, by their numbers."""
    return jax.tree.map(lambda a: a[ids], clients)


def put(clients: Clients, ids: jax.Array, present: jax.Array, new: Clients) -> Clients:
    """All clients, with the states of those present replaced by `new` ones, (places, ...)."""
    place = jnp.where(present > 0, ids, clients.rows.shape[0])  # out of bounds: dropped
    kept = ("state", "variate", "residual")

    def placed(old, now):
        return old.at[place].set(now.astype(old.dtype), mode="drop")

    return clients.replace(**{k: jax.tree.map(placed, getattr(clients, k), getattr(new, k)) for k in kept})  # type: ignore[attr-defined]


def local(work: Work, key: jax.Array, shared: Tree, control: Tree, client: Clients) -> tuple[Tree, Clients, Metrics]:
    """One client's work.

    Args:
      work: what it does.
      key: of its steps.
      shared: theta.
      control: c of SCAFFOLD, or ().
      client: without the leading axis.

    Returns:
      theta_K - theta, the client afterwards, and its metrics' means over the steps.
    """
    pulled, corrected = work.prox > 0, bool(jax.tree.leaves(control))
    c = jax.tree.map(jnp.subtract, control, client.variate) if corrected else ()

    def body(state, k):
        before = work.part(state)
        state, metrics = work.step(jax.random.fold_in(key, k), state, client.data, client.rows)
        if pulled or corrected:
            now = work.part(state)
            if pulled:
                now = jax.tree.map(lambda n, b, s: n - work.rate * work.prox * (b - s), now, before, shared)
            if corrected:
                now = jax.tree.map(lambda n, d: n - work.rate * d, now, c)
            state = work.join(state, now)
        return state, metrics

    state, metrics = jax.lax.scan(body, work.join(client.state, shared), jnp.arange(work.steps))
    change = jax.tree.map(jnp.subtract, work.part(state), shared)
    after: Any = client.replace(state=state)  # type: ignore[attr-defined]
    if corrected:
        far = work.steps * work.rate
        variate = jax.tree.map(lambda d, x: -d - x / far, c, change)  # c_i - c + (theta - theta_K) / (K eta)
        after = after.replace(variate=variate)
    return change, after, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)
