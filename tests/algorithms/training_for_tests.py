"""`gridjax train` in a small environment, here and in a process of its own that kills itself while it saves."""

import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "env"))

import jax
import jax.numpy as jnp
from environments_for_tests import walk

from algorithms import checkpoints, mixtures
from gridjax.__main__ import main

NAME = "Walk-line-v0"


def make(name, *, seed, days, hours, limit=10.0):
    assert name == NAME
    return walk(counts=(3, 0))[0], jnp.asarray(limit)


def patches():
    """What of `algorithms.mixtures` is another for these tests."""
    return {"make": make, "names": lambda: (NAME,), "feeder_of": lambda **made_by: None}


def same_bits(a, b):
    """Whether two pytrees have the same leaves, bit by bit."""
    a, b = jax.tree.leaves(a), jax.tree.leaves(b)
    return len(a) == len(b) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in zip(map(jax.device_get, a), map(jax.device_get, b), strict=True)
    )


def _die_while_saving(at):
    """Ends this process by SIGKILL when the sums of its checkpoint number `at` are half taken."""
    real, sums = checkpoints._sum, [0]

    def dying(path):
        sums[0] += str(path).endswith("header.json")
        if sums[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(path)

    checkpoints._sum = dying


if __name__ == "__main__":
    for name, value in patches().items():
        setattr(mixtures, name, value)
    checkpoints.source_version = lambda: "of these tests"
    _die_while_saving(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
