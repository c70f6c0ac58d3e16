"""The command of federations: `gridjax federate CONFIG`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Agents = Callable[[], Mapping[str, Any]]


def add_parsers(sub: Any, common: argparse.ArgumentParser, agents: Agents) -> None:
    """Adds the command; `agents` gives the algorithms by name, which this package does not know."""
    one = sub.add_parser("federate", parents=[common], help="train one policy over several utilities' logs")
    one.add_argument("config", type=Path, metavar="CONFIG", help="a TOML file, see docs/federated.md")
    one.add_argument("--out", type=Path, metavar="FOLDER", help="default: runs/NAME, of the file's name")
    one.add_argument("--resume", action="store_true", help="go on from the last whole checkpoint in --out")
    one.add_argument("--float32", action="store_true", help="simulate in single precision; agents always learn in it")
    one.set_defaults(run=_federate, agents=agents)


def _federate(*args: Any) -> int:
    from federated import federate_command

    return federate_command.federate(*args)
