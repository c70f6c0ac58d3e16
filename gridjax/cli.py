"""The command line: `gridjax feeders | solve | batch | validate | convert | collect`, and what `main` is given.

Results go to stdout; warnings, progress and errors to stderr. Exit codes: 0 fine, 1 not converged or fatal problems,
2 bad usage or bad input.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from rich.console import Console
from rich.text import Text

from gridjax import commands, dataset_commands
from gridjax.drawing import printable

_WIDTH = 160  # of what is written to a file or a pipe
_PICTURES = (".png", ".svg", ".html")


def main(argv: Sequence[str] | None = None, *more: Callable[..., None]) -> int:
    """Runs a command; see `gridjax.__main__.main`.

    Args:
      argv: likewise.
      *more: functions that add commands of other packages, with the arguments of `gridjax.dataset_commands.add_parser`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without a letter shows a question mark
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        options = _parser(more).parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    if not getattr(options, "float32", False):
        jax.config.update("jax_enable_x64", True)
    console, errors = _console(False), _console(True)
    try:
        return options.run(options, console, errors)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who read has seen enough
        return 0
    except KeyboardInterrupt:
        errors.print(Text("gridjax: interrupted"))
        return 130
    except commands.Refused as refused:
        _complain(errors, refused)
        return refused.code
    except (ValueError, OSError, ImportError) as error:
        if options.debug:
            raise
        _complain(errors, error)
        return 2


def _console(stderr: bool) -> Console:
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_WIDTH)


def _complain(errors: Console, error: Exception) -> None:
    """One line: what is wrong and the cure."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}; check the path and its permissions"
    else:
        text = " ".join(str(error).split()) or type(error).__name__
    text = "".join(letter if letter.isprintable() else "\ufffd" for letter in text)
    errors.print(Text(f"gridjax: error: {text}"), soft_wrap=True)


def _parser(more: Sequence[Callable[..., None]]) -> argparse.ArgumentParser:
    from gridjax import __version__

    parser = argparse.ArgumentParser(prog="gridjax", description="Three-phase power flow of distribution feeders.")
    parser.add_argument("--version", action="version", version=f"gridjax {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show tracebacks and whole warnings")
    solver = argparse.ArgumentParser(add_help=False)
    solver.add_argument("feeder", help="a shipped feeder's name, or a .dss, .json or .json.gz file")
    solver.add_argument("--method", choices=("sweep", "newton"), default="sweep", help="default: %(default)s")
    solver.add_argument("--tol", type=_positive, default=1e-8, help="in per unit; default: %(default)s")
    solver.add_argument("--float32", action="store_true", help="compute in single precision")
    solver.add_argument("--csv", type=Path, metavar="FILE", help="write a table")
    sub = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    one = sub.add_parser("feeders", parents=[common], help="list the shipped feeders")
    one.set_defaults(run=commands.feeders)

    one = sub.add_parser("solve", parents=[common, solver], help="solve a feeder's power flow")
    one.add_argument("--scale", type=_finite, default=1.0, help="multiply all loads; default: %(default)s")
    one.add_argument("--json", metavar="FILE", help="write all results; - is stdout")
    one.add_argument("--plot", type=_picture, metavar="FILE", help=f"draw it; the suffix is one of {_LIST}")
    one.add_argument("--picture", choices=("profile", "oneline"), default="profile", help="what a .png or .svg shows")
    one.set_defaults(run=commands.solve)

    one = sub.add_parser("batch", parents=[common, solver], help="solve random load scenarios")
    one.add_argument("--scenarios", type=_count, required=True, metavar="N", help="how many")
    one.add_argument("--seed", type=_seed, default=0, help="of the draw; default: %(default)s")
    one.add_argument("--spread", type=_spread, default=0.3, help="of each load; default: %(default)s")
    one.add_argument("--batch-size", type=_count, default=500, metavar="N", help="in a chunk; default: %(default)s")
    one.add_argument("--plot", type=_histogram, metavar="FILE", help="draw the voltages' distribution (.png, .svg)")
    one.set_defaults(run=commands.batch)

    one = sub.add_parser("validate", parents=[common], help="list a feeder's problems")
    one.add_argument("feeder", help="a .dss, .json or .json.gz file, or a shipped feeder's name")
    one.set_defaults(run=commands.validate)

    one = sub.add_parser("convert", parents=[common], help="convert between .dss, .json and .json.gz")
    one.add_argument("feeder", metavar="IN", help="a file, or a shipped feeder's name")
    one.add_argument("out", metavar="OUT", type=Path, help="the file to write; its suffix says the format")
    one.set_defaults(run=commands.convert)

    for add in (dataset_commands.add_parser, *more):
        add(sub, common, _count, _seed)
    return parser


_LIST = ", ".join(_PICTURES)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{printable(text)!r} is not a number") from None


def _finite(text: str) -> float:
    value = _number(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{value} is not finite")
    return value


def _positive(text: str) -> float:
    value = _finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


def _spread(text: str) -> float:
    value = _finite(text)
    if not 0 <= value <= 3:
        raise argparse.ArgumentTypeError(f"{value} is not between 0 and 3")
    return value


def _whole(text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{printable(text)!r} is not a whole number") from None
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{value} is not between {low} and {high}")
    return value


def _count(text: str) -> int:
    return _whole(text, 1, 2**31 - 1)


def _seed(text: str) -> int:
    return _whole(text, 0, 2**32 - 1)


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() not in _PICTURES:
        raise argparse.ArgumentTypeError(f"{printable(text)!r}: the suffix must be one of {_LIST}")
    return path


def _histogram(text: str) -> Path:
    path = _picture(text)
    if path.suffix.lower() == ".html":
        raise argparse.ArgumentTypeError(f"{printable(text)!r}: the suffix must be .png or .svg")
    return path
