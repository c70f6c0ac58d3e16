"""A small environment without a grid, whose every number can be worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp

from gridjax.env.environment import Environment, Outcome


@dataclasses.dataclass(frozen=True)
class Walk(Environment):
    """A walk on a line: x moves by the first entry of the action; the reward is -x^2, the cost how far |x| is above 1.

    Where |x| goes beyond `params`, the step counts as not solved. With counts, an entry k of n moves by 2 k/(n-1) - 1.
    """

    counts: tuple[int, ...] = (0, 0)

    @property
    def constraints(self):
        return ("beyond 1",)

    @property
    def observation_names(self):
        return ("x", "t")

    @property
    def action_size(self):
        return len(self.counts)

    @property
    def action_counts(self):
        return self.counts

    def nothing(self):
        return jnp.array([n // 2 for n in self.counts])

    def begin(self, key, params):
        return jax.random.uniform(key), jnp.zeros((), jnp.int32)

    def advance(self, key, state, action, params):
        x, t = state
        n = self.counts[0]
        x = x + (2 * action[0] / (n - 1) - 1 if n else action[0])
        over = jnp.maximum(jnp.abs(x) - 1, 0.0)
        late = t + 1 >= self.horizon
        out = Outcome(-(x**2), over[None], jnp.abs(x) <= params, jnp.zeros((), bool), late, {"distance": jnp.abs(x)})
        return (x, t + 1), out

    def observe(self, state, params):
        return jnp.stack([state[0], state[1].astype(state[0].dtype)])


def walk(counts=(0, 0), horizon=5):
    """The environment, and parameters with which nothing fails."""
    return Walk(horizon=horizon, failure_penalty=-100.0, counts=counts), jnp.asarray(jnp.inf)
