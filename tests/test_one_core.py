"""A container with one processor: XLA takes other paths there, on which compiling once failed for some feeders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # before JAX counts them
import jax
jax.config.update("jax_enable_x64", True)
import gridjax
for name in ("ieee4_yy", "european_lv", "ieee13"):
    grid = gridjax.compile(gridjax.feeders.load(name))
    for method in ("sweep", "newton"):
        assert gridjax.solve(grid, grid.nominal, method=method).converged, (name, method)
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot bind a process to a core")
def test_feeders_compile_and_solve_on_one_core():
    root = Path(__file__).parent.parent
    run = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, cwd=root)
    assert run.returncode == 0, run.stderr
