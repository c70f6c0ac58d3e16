"""The console script: `gridjax`, or `python -m gridjax`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from algorithms import cli as learning
from gridjax import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments after the program's name; None takes those of the process.

    Returns:
      The exit code: 0 fine, 1 not converged or fatal problems, 2 bad usage or bad input, 130 interrupted.
    """
    return cli.main(argv, learning.add_parsers)


if __name__ == "__main__":
    sys.exit(main())
