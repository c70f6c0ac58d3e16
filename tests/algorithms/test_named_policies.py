"""Baselines are what their names say, or left out with the reason."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "env"))

import jax
import jax.numpy as jnp
from environments_for_tests import walk

from algorithms.baselines import policies
from gridjax.env.behaviours import NAMES
from gridjax.env.policies import Constant, Noisy, Random

HOLDING = {"holding-nothing", "holding-constant", "holding-middle", "holding-each"}


def test_every_name_is_its_policy_or_has_a_reason():
    env, params = walk()[0], jnp.asarray(10.0)
    names = [name for name in NAMES if "constant" not in name or name.startswith("holding-")]
    found, missing = policies([*names, "magic"], env, params, params, None, jax.random.key(0))
    assert {name: type(policy) for name, policy in found.items()} == {"nothing": Constant, "random": Random}
    assert set(missing) == {"classical", "noisy-classical", *HOLDING, "magic"}
    assert "memory" in missing["holding-nothing"] and Noisy not in map(type, found.values())
