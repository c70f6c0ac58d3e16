"""The options of `gridjax evaluate` and `gridjax compare`; what they do is imported when they run."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from gridjax.dataset_commands import setting

EPISODES = 1000  # held-out days


def add_parsers(sub: Any, common: argparse.ArgumentParser, whole: Any, seed: Any) -> None:
    """Adds both commands; `whole` and `seed` read positive numbers and seeds."""
    _add_evaluate(sub, common, whole, seed)
    _add_compare(sub, common)


def _add_evaluate(sub: Any, common: argparse.ArgumentParser, whole: Any, seed: Any) -> None:
    one = sub.add_parser("evaluate", parents=[common], help="play an agent on days that it has not seen")
    one.add_argument("run_folder", nargs="?", type=Path, metavar="RUN", help="the folder of `gridjax train`")
    one.add_argument("--checkpoint", type=Path, metavar="RUN", help="the same, or one of its checkpoints")
    one.add_argument("--env", metavar="NAME", help="another environment; default: the one that it was trained for")
    one.add_argument(
        "--env-set", action="append", type=setting, metavar="KEY=VALUE", default=[], help="an environment's option"
    )
    one.add_argument(
        "--episodes", type=whole, default=EPISODES, metavar="N", help="held-out days; default: %(default)s"
    )
    one.add_argument(
        "--days-seed", type=seed, default=1, help="of the first held-out year of days; default: %(default)s"
    )
    one.add_argument("--seeds", type=whole, metavar="N", help="only the first agents of the run; default: all")
    one.add_argument(
        "--baselines", metavar="NAME,NAME",
        help="to play beside: nothing, classical, constant, random, noisy-classical, noisy-constant, or none; default: "
        "the first four and the behaviours of the agent's data set",
    )  # fmt: skip
    one.add_argument("--out", type=Path, metavar="FOLDER", help="of the results; default: RUN/evaluation")
    one.add_argument(
        "--from-logs", type=Path, metavar="FILE",
        help="estimate the agent's return from this .npz file of `gridjax collect` alone, beside the simulator's truth",
    )  # fmt: skip
    one.add_argument(
        "--updates", type=whole, default=20_000, metavar="N", help="of fitted Q evaluation; default: %(default)s"
    )
    one.add_argument("--float32", action="store_true", help="simulate in single precision")
    one.set_defaults(run=_evaluate)


def _add_compare(sub: Any, common: argparse.ArgumentParser) -> None:
    one = sub.add_parser("compare", parents=[common], help="compare runs: learning curves, return against cost")
    one.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of `gridjax train`")
    one.add_argument("--metric", action="append", metavar="NAME", help="of metrics.csv to draw; default: all")
    one.add_argument(
        "--out", type=Path, default=Path("comparison"), metavar="FOLDER", help="of the results; default: %(default)s"
    )
    one.set_defaults(run=_compare)


def _evaluate(*args: Any) -> int:
    from algorithms import evaluate_command

    return evaluate_command.evaluate(*args)


def _compare(*args: Any) -> int:
    from algorithms import compare_command

    return compare_command.compare(*args)
