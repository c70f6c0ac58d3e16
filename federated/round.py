"""One round: local work, clip, one sum, one step of the server.

With Delta_i the update of client i of those present, C the bound, z the noise multiplier and m the denominator,

    D     = ( sum_i clip(compress(Delta_i), C) + N(0, (z C)^2) ) / m       under privacy: noise once, on the sum
    theta = theta + step of the server's optimiser on the gradient -D      (S. J. Reddi et al., ICLR 2021, alg. 2)

(B. McMahan et al., "Learning differentially private recurrent language models", ICLR 2018, alg. 1, with the fixed
denominator of its estimator f_f.) `a_round` is written for a block of clients. The sum is a `psum` where its argument
`axis` names an axis, so that the same function runs for all clients in one block, under `vmap` (a client a lane),
`pmap` (a client a device) and `shard_map` (many a device), also over several processes; `spread` makes these. What a
client draws depends on its own number and the round's key, and the noise on the key alone, so that the result does not
depend on where clients are (to the rounding of a sum's order).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from federated import aggregation, compression
from federated.aggregation import Linear, Mean, Rule
from federated.block import Cohort, Given, Sending, Sums, block
from federated.clipping import Adaptive, adapted, update_noise
from federated.compression import Compression, Whole
from federated.hardened import Hardened, hardened_sum
from federated.noise import gaussian
from federated.work import Clients, Metrics, Tree, Work

AXIS = "clients"
WAYS = ("block", "groups", "vmap", "pmap", "shard_map")
EQUAL, WHOLE = Mean(), Whole()


@dataclass(frozen=True)
class Federation:
    """How a round goes; static.

    Attributes:
      works: what clients do, one for each group of clients whose data have one shape (feeders of one kind).
      optimiser: the server's, on the gradient -D: `fed_avg()`, `fed_avg_m()`, `fed_adam()`, `fed_yogi()`, or any.
      rule: how updates become one.
      compression: of what clients send, before it is clipped.
      bound: C, a number or how it adapts; None does not clip.
      noise_multiplier: z, the noise's standard deviation over C; above 0, privacy is on.
      expected: m, a fixed public number of clients in a round; 0 divides by the weights of those present.
      scaffold: the number of all clients, for SCAFFOLD's control variates; 0 goes without.
      hardened: whether the noise is that of `federated.hardened`, on integers and from the operating system, not JAX's.
      at_once: clients of a block that work side by side; the others wait, which bounds the memory.

    Raises:
      ValueError: a combination that has no privacy claim, with the cure.
    """

    works: tuple[Work, ...]
    optimiser: optax.GradientTransformation
    rule: Rule = EQUAL
    compression: Compression = WHOLE
    bound: float | Adaptive | None = None
    noise_multiplier: float = 0.0
    expected: float = 0.0
    scaffold: int = 0
    hardened: bool = False
    at_once: int = 64

    def __post_init__(self) -> None:
        """Refuses what has no claim or makes no sense."""
        if not self.works or self.at_once < 1 or self.noise_multiplier < 0 or self.expected < 0:
            raise ValueError("a federation needs work, at_once of at least 1, and no number below 0")
        if isinstance(self.bound, float | int) and not self.bound > 0:
            raise ValueError(f"a bound of {self.bound:g}: take one above 0, or None")
        if self.scaffold and any(not work.rate for work in self.works):
            raise ValueError("SCAFFOLD needs the size of a step: give every work its rate")
        if self.scaffold and self.bound is not None:
            raise ValueError("SCAFFOLD's variates are sent unbounded: go without the bound")
        if self.hardened and (not self.private or isinstance(self.bound, Adaptive)):
            raise ValueError("hardened noise needs a noise_multiplier, and a bound that is a number")
        if not self.private:
            return
        if self.bound is None:
            raise ValueError("noise without a bound protects nobody: give the updates' norm a bound")
        if not self.expected:
            raise ValueError("the number of clients that came is private: give the fixed number `expected`")
        if not isinstance(self.rule, Mean):
            raise ValueError(f"{type(self.rule).__name__} has no bounded sensitivity: under privacy take Mean")

    @property
    def sending(self) -> Sending:
        """What of it clients need to know."""
        return Sending(self.rule, self.compression, self.at_once, self.hardened)

    @property
    def private(self) -> bool:
        """Whether noise is added."""
        return self.noise_multiplier > 0

    def check_noise(self, noise_key: jax.Array | None) -> None:
        """Refuses to go without a key where the noise comes from one.

        Raises:
          ValueError: it is missing.
        """
        if self.private and not self.hardened and noise_key is None:
            raise ValueError("privacy needs a key for its noise: give federated.noise.fresh_key()")


@flax.struct.dataclass
class Server:
    """What the server holds.

    Attributes:
      round: () rounds made.
      shared: theta.
      moments: of its optimiser.
      control: c of SCAFFOLD, or ().
      bound: () C; infinite without one.
    """

    round: jax.Array
    shared: Tree
    moments: Any
    control: Tree
    bound: jax.Array


def fed_avg(rate: float = 1.0) -> optax.GradientTransformation:
    """The mean update, times a rate (McMahan et al., AISTATS 2017)."""
    return optax.sgd(rate)


def fed_avg_m(rate: float = 1.0, momentum: float = 0.9) -> optax.GradientTransformation:
    """With momentum (T.-M. H. Hsu, H. Qi and M. Brown, 2019)."""
    return optax.sgd(rate, momentum=momentum)


def fed_adam(rate: float = 1e-2, adaptivity: float = 1e-3) -> optax.GradientTransformation:
    """Adam with a large epsilon (Reddi et al. 2021, alg. 2); Optax corrects the moments' bias, the paper does not."""
    return optax.adam(rate, b1=0.9, b2=0.99, eps=adaptivity)


def fed_yogi(rate: float = 1e-2, adaptivity: float = 1e-3) -> optax.GradientTransformation:
    """Yogi likewise."""
    return optax.yogi(rate, b1=0.9, b2=0.99, eps=adaptivity)


def begin(federation: Federation, shared: Tree) -> Server:
    """A server before its first round."""
    bound = federation.bound
    first = jnp.inf if bound is None else bound.start if isinstance(bound, Adaptive) else float(bound)
    control = jax.tree.map(jnp.zeros_like, shared) if federation.scaffold else ()
    return Server(
        jnp.zeros((), jnp.int32), shared, federation.optimiser.init(shared), control, jnp.asarray(first, float)
    )


def ready(federation: Federation, server: Server, clients: Clients) -> Clients:
    """Clients with the variates and residuals that the federation needs, at zero."""
    number = clients.rows.shape[0]

    def zeros():
        return jax.tree.map(lambda a: jnp.zeros((number, *a.shape), a.dtype), server.shared)

    return clients.replace(  # type: ignore[attr-defined]
        variate=zeros() if federation.scaffold else (),
        residual=zeros() if isinstance(federation.compression, compression.TopK) else (),
    )


def a_round(
    key: jax.Array,
    noise_key: jax.Array | None,
    server: Server,
    cohorts: tuple[Cohort, ...],
    federation: Federation,
    axis: str | None = None,
) -> tuple[Server, tuple[Clients, ...], Metrics]:
    """One round, or, with an axis, this place's share of it.

    Args:
      key: of the clients' work in this round; the same everywhere.
      noise_key: of this round's noise alone, the same everywhere; None without privacy. A key that reproduces a run
        reproduces its noise, so that a real release takes `federated.noise.fresh_key()`.
      server: the same everywhere.
      cohorts: this place's clients, one cohort for each of the federation's works.
      federation: how. Static.
      axis: over which sums go. Static.

    Returns:
      The server afterwards, the clients (places, ...) afterwards, absent and failed ones as they were, and means over
      those present of "norm" (before the clip), "inside" (share below the bound) and the work's metrics, with the
      numbers "present" and "lost" (whose update was not finite: they count as absent, under privacy as zero). These
      figures are not protected.

    Raises:
      ValueError: privacy without a key for the noise, or with noise that is drawn on the host.
    """
    federation.check_noise(noise_key)
    if federation.hardened:
        raise ValueError('integers are summed on the host: spread the clients as "groups", which is left out of jit')
    given, sending = told(server), federation.sending
    each = zip(federation.works, cohorts, strict=True)
    parts = [block(work, sending, key, given, cohort) for work, cohort in each]
    server, metrics = combined(key, noise_key, server, parts, federation, axis)
    return server, tuple(part[1] for part in parts), metrics


def told(server: Server) -> Given:
    """What clients are told."""
    return Given(server.shared, server.control, server.bound)


def combined(
    key: jax.Array,
    noise_key: jax.Array | None,
    server: Server,
    parts: Sequence[tuple[Sums, Any, Any]],
    federation: Federation,
    axis: str | None = None,
    noisy: Tree | None = None,
) -> tuple[Server, Metrics]:
    """The server after a round of these blocks, and the round's figures; arguments as of `a_round`.

    `noisy` is the sum of the updates, where its noise is on it already.
    """
    noise, count = jax.random.split(key if noise_key is None else noise_key)
    sums = jax.tree.map(lambda *a: sum(a[1:], a[0]), *(part[0] for part in parts))
    if axis is not None:
        sums = jax.lax.psum(sums, axis)
    if federation.sending.with_all and noisy is None:
        stacked = jax.tree.map(lambda *a: jnp.concatenate(a), *(part[2] for part in parts))
        mean = _of_all(federation.rule, stacked, axis)
    else:
        total, m = sums.update, federation.expected or jnp.maximum(sums.weight, aggregation.TINY)
        if noisy is not None:
            total = jax.tree.map(lambda n, t: n.astype(t.dtype), noisy, total)
        elif federation.private:
            total = gaussian(noise, total, _multiplier(federation) * server.bound)
        mean = jax.tree.map(lambda a: a / m, total)
    change, moments = federation.optimiser.update(jax.tree.map(jnp.negative, mean), server.moments, server.shared)
    bound = server.bound
    if isinstance(federation.bound, Adaptive):
        m = federation.expected or jnp.maximum(sums.present, 1.0)
        config = federation.bound if federation.private else replace(federation.bound, count_noise=0.0)
        bound = adapted(bound, sums.bits, count, m, config)
    control = server.control
    if federation.scaffold:
        control = jax.tree.map(lambda c, d: c + d / federation.scaffold, control, sums.variate)
    shared = optax.apply_updates(server.shared, change)
    number = jnp.maximum(sums.present, 1.0)
    metrics = {name: value / number for name, value in sums.metrics.items()}
    metrics |= {"norm": sums.norm / number, "inside": sums.bits / number + 0.5}
    metrics |= {"present": sums.present, "lost": sums.lost}
    return Server(server.round + 1, shared, moments, control, bound), metrics


def _multiplier(federation: Federation) -> float:
    """Of the updates' noise, where a part of z goes to the count of an adaptive bound."""
    if not isinstance(federation.bound, Adaptive):
        return federation.noise_multiplier
    return update_noise(federation.noise_multiplier, federation.bound.noise_on_counts(federation.expected))


def _of_all(rule: Rule, stacked: Any, axis: str | None) -> Tree:
    """The update of rules that see every single one."""
    if axis is not None:
        stacked = jax.tree.map(lambda a: jax.lax.all_gather(a, axis, tiled=True), stacked)
    updates, here, rows, merit = stacked
    if not isinstance(rule, Linear):
        return aggregation.combined(rule, updates, here)
    w = here * aggregation.weight(rule, rows, merit, jnp.max(jnp.where(here > 0, merit, -jnp.inf)))
    w = jnp.where(here > 0, w, 0.0) / jnp.maximum(jnp.sum(jnp.where(here > 0, w, 0.0)), aggregation.TINY)
    return jax.tree.map(lambda a: jnp.tensordot(w.astype(a.dtype), a, axes=1), updates)


def spread(
    federation: Federation, way: str = "block", mesh: Mesh | None = None
) -> Callable[[jax.Array, jax.Array | None, Server, tuple[Cohort, ...]], tuple[Server, tuple[Clients, ...], Metrics]]:
    """The round over all clients of the cohorts, a function of both keys, server and cohorts, not yet compiled.

    Args:
      federation: how.
      way: "block": all in one place; "groups": likewise, but each group by a program of its own, which serves any
        optimiser, bound and noise (leave it out of `jit`); "vmap": a lane for each client; "pmap": a device for each
        client; "shard_map": the clients spread over a mesh's axis "clients".
      mesh: of "shard_map"; made with `axis_types=(AxisType.Auto,)`.

    Raises:
      ValueError: an unknown way, a mesh that is missing or has no such axis; when called, cohorts of several sizes,
        or, with "shard_map", clients that the devices do not divide.
    """
    if way not in WAYS:
        raise ValueError(f"way {way!r} is unknown: choose one of {', '.join(WAYS)}")
    if way == "block":
        return lambda key, noise, server, cohorts: a_round(key, noise, server, cohorts, federation)
    if way == "groups":
        return lambda key, noise, server, cohorts: _by_groups(key, noise, server, cohorts, federation)

    def place(key, noise, server, cohorts):
        return a_round(key, noise, server, cohorts, federation, AXIS)

    if way == "shard_map":
        if mesh is None or AXIS not in mesh.axis_names:
            raise ValueError(f'"shard_map" needs a mesh with an axis {AXIS!r}')
        here, all_, devices = PartitionSpec(AXIS), PartitionSpec(), mesh.shape[AXIS]
        mapped = jax.shard_map(
            place, mesh=mesh, in_specs=(all_, all_, all_, here), out_specs=(all_, here, all_), check_vma=False
        )
        return lambda key, noise, server, cohorts: mapped(key, noise, server, _checked(cohorts, devices))
    wrap: Any = jax.vmap if way == "vmap" else jax.pmap
    mapped = wrap(place, axis_name=AXIS, in_axes=(None, None, None, 0), out_axes=(None, 0, None))

    def lanes(key, noise, server, cohorts):
        cohorts = jax.tree.map(lambda a: a[:, None], _checked(cohorts, 1))
        server, clients, metrics = mapped(key, noise, server, cohorts)
        return server, jax.tree.map(lambda a: a[:, 0], clients), metrics

    return lanes


def _by_groups(key, noise, server, cohorts, federation):
    federation.check_noise(noise)
    given, each = told(server), zip(federation.works, cohorts, strict=True)
    parts = [_one_block(work, federation.sending, key, given, cohort) for work, cohort in each]
    after = tuple(part[1] for part in parts)
    noisy = _on_integers(federation, server, [p[2] for p in parts]) if federation.hardened else None
    sums = [(p[0], (), () if federation.hardened else p[2]) for p in parts]
    server, metrics = _one_sum(key, noise, server, sums, federation, noisy=noisy)
    return server, after, metrics


def _on_integers(federation: Federation, server: Server, singles: Sequence[Any]) -> Tree:
    """The sum of all single updates with hardened noise, on the host."""
    updates = jax.tree.map(lambda *a: np.concatenate([np.asarray(x) for x in a]), *(one[0] for one in singles))
    here = np.concatenate([np.asarray(one[1]) for one in singles])
    return hardened_sum(updates, here, Hardened(float(server.bound), federation.noise_multiplier))


_one_block = jax.jit(block, static_argnums=(0, 1))
_one_sum = jax.jit(combined, static_argnums=(4,))


def _checked(cohorts: tuple[Cohort, ...], devices: int) -> tuple[Cohort, ...]:
    sizes = {cohort.ids.shape[0] for cohort in cohorts}
    if len(sizes) != 1 or max(sizes) % devices:
        raise ValueError(
            f"cohorts of {sorted(sizes)} clients over {devices} devices: give groups of one size that they divide, "
            'with absent clients where some are missing, or take the way "block"'
        )
    return cohorts


def round_bytes(federation: Federation, server: Server, present: float) -> dict[str, int]:
    """Bytes of a round, from the shapes: "down" to and "up" from so many clients."""
    one = compression.sent_bytes(federation.compression, server.shared)
    whole = sum(math.prod(a.shape) for a in jax.tree.leaves(server.shared)) * compression.NUMBER
    twice = 2 if federation.scaffold else 1  # the variates travel too
    return {"down": int(present * whole * twice), "up": int(present * (one + (whole if federation.scaffold else 0)))}
