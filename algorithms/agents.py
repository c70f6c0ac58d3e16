"""All agents by name, for the command line."""

from __future__ import annotations

from algorithms.awr import AWR
from algorithms.bc import BC
from algorithms.constrained import CONSTRAINED
from algorithms.cql import CQL
from algorithms.iql import IQL
from algorithms.rebrac import REBRAC
from algorithms.td3_bc import TD3_BC

AGENTS = {agent.name: agent for agent in (BC, AWR, CQL, IQL, TD3_BC, REBRAC, CONSTRAINED)}
