"""Three-phase power flow of distribution feeders as pure JAX functions.

    feeder = gridjax.feeders.ieee123()
    grid = gridjax.compile(feeder)
    flow = gridjax.solve(grid, grid.nominal)

Everything after `compile` composes with `jax.jit`, `jax.vmap` and `jax.grad`. See README.md.
"""

from gridjax import feeders
from gridjax.assembly import assemble, compile
from gridjax.feeder import Feeder
from gridjax.graph import distance_km, to_networkx
from gridjax.grid import Grid, OperatingPoint
from gridjax.io.json import read_json, write_json
from gridjax.io.opendss import read_opendss, write_opendss
from gridjax.layout import Layout, Parameters, lay_out
from gridjax.powerflow.results import (
    current_residual,
    currents,
    device_powers,
    element_losses,
    loading,
    losses,
    powers,
    sequence_voltages,
    source_power,
    unbalance,
    voltages,
)
from gridjax.powerflow.sensitivities import dloss_dp, dloss_dq, dv_dp, dv_dq
from gridjax.powerflow.solve import PowerFlow, solve
from gridjax.profiles import Profiles, Shapes
from gridjax.series import Controls, simulate
from gridjax.stacking import stack
from gridjax.validate import Problem, validate

__version__ = "0.1.0"

__all__ = [
    "Controls",
    "Feeder",
    "Grid",
    "Layout",
    "OperatingPoint",
    "Parameters",
    "PowerFlow",
    "Problem",
    "Profiles",
    "Shapes",
    "assemble",
    "compile",
    "current_residual",
    "currents",
    "device_powers",
    "distance_km",
    "dloss_dp",
    "dloss_dq",
    "dv_dp",
    "dv_dq",
    "element_losses",
    "feeders",
    "lay_out",
    "loading",
    "losses",
    "powers",
    "read_json",
    "read_opendss",
    "sequence_voltages",
    "simulate",
    "solve",
    "source_power",
    "stack",
    "to_networkx",
    "unbalance",
    "validate",
    "voltages",
    "write_json",
    "write_opendss",
]
