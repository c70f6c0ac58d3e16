"""The console script: `gridjax`, or `python -m gridjax`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from algorithms import cli as learning
from federated import cli as federation
from gridjax import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments after the program's name; None takes those of the process.

    Returns:
      The exit code: 0 fine, 1 not converged or fatal problems, 2 bad usage or bad input, 130 interrupted.
    """
    return cli.main(argv, learning.add_parsers, _federation)


def _federation(sub: Any, common: Any, *readers: Any) -> None:
    del readers
    federation.add_parsers(sub, common, _agents)


def _agents() -> Mapping[str, Any]:
    from algorithms.agents import AGENTS

    return AGENTS


if __name__ == "__main__":
    sys.exit(main())
