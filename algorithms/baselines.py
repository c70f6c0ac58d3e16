"""Policies by name that learned agents are compared with on held-out days.

The names are those of `gridjax collect`: "nothing", "random", "classical" (regulators' and capacitors' own controls,
IEEE 1547 droop; in restoration the operator's rule), "constant" (the best constant action of the training days, by the
search and the key that a mixture of `gridjax train` uses) and, with exploration, "noisy-classical" and
"noisy-constant". What an environment does not have is left out with the reason.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax

from gridjax.env.behaviours import NAMES, best_constant, kinds
from gridjax.env.environment import Environment, Policy
from gridjax.env.policies import classical, noisy, nothing, random
from gridjax.env.restoration import Restoration
from gridjax.env.restoration_policies import greedy
from gridjax.feeder import Feeder

USUAL = ("nothing", "classical", "constant", "random")


def policies(
    names: Iterable[str], env: Environment, params: Any, training: Any, feeder: Feeder, key: jax.Array
) -> tuple[dict[str, Policy], dict[str, str]]:
    """Policies for held-out days.

    Args:
      names: of those above.
      env: the environment.
      params: with the held-out days, which the classical controls read the present loads from.
      training: parameters with the training days, on which the constant action is searched.
      feeder: of the environment, see `gridjax.env.tasks.feeder_of`.
      key: of the search.

    Returns:
      The policies by name, and for each name that has none the reason.
    """
    found: dict[str, Policy] = {}
    missing: dict[str, str] = {}
    bases: dict[str, Policy] = {}
    for name in dict.fromkeys(names):
        if name not in NAMES:
            missing[name] = f"not one of {', '.join(NAMES)}"
            continue
        if name.startswith("holding-"):
            missing[name] = "it holds its settings in a memory: its returns are what `gridjax collect` printed"
            continue
        base = name.removeprefix("noisy-")
        try:
            if base not in bases:
                bases[base] = _base(base, env, params, training, feeder, key)
            found[name] = noisy(env, bases[base]) if base != name else bases[base]
        except ValueError as reason:
            missing[name] = str(reason)
    return found, missing


def _base(name: str, env: Environment, params: Any, training: Any, feeder: Feeder, key: jax.Array) -> Policy:
    if name == "nothing":
        return nothing(env, params)
    if name == "random":
        return random(env)
    if name == "constant":
        return best_constant(env, training, key, tie=kinds(env))[0]
    base = env.base
    return greedy(base, params) if isinstance(base, Restoration) else classical(base, params, feeder)
