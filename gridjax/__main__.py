"""The console script: `gridjax`, or `python -m gridjax`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gridjax import cli


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments after the program's name; None takes those of the process.

    Returns:
      The exit code: 0 fine, 1 not converged or fatal problems, 2 bad usage or bad input.
    """
    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main())
