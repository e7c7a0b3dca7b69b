"""onecycle train --seeds: the same training with several seeds, and what they give together."""

from __future__ import annotations

import argparse
import contextlib
import copy
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from onecycle.commands.compare import PAGE, check_page, write_page
from onecycle.errors import UsageError
from onecycle.files import to_json, write_file

if TYPE_CHECKING:
    from onecycle.training.group import Group

MOST_SEEDS = 1000
SUMMARY_FILE = "summary.json"


def parse_seeds(text: str) -> list[int]:
    """Seeds from numbers and ranges, such as ``0-4`` or ``0,3,7``.

    Raises:
        UsageError: it is something else, a seed is named twice, or there are fewer than two.
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,10})(?:-(\d{1,10}))?\s*", part, re.ASCII)
        first = int(found[1]) if found else 0
        last = int(found[2] or first) if found else -1
        if not first <= last < first + MOST_SEEDS:
            raise UsageError(
                f"--seeds is {text!r}; it must be numbers and ranges, such as 0-4 or 0,3,7, of "
                f"{MOST_SEEDS:,} seeds at most"
            )
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise UsageError(f"--seeds is {text!r}, which names a seed twice; name each once")
    if len(seeds) < 2:
        raise UsageError(f"--seeds is {text!r}; for one seed give --seed {seeds[0]}")
    return seeds


def check_seeds(args: argparse.Namespace) -> None:
    """Refuse seeds that do not go with the other options; ``args.seeds`` is a list then.

    Raises:
        UsageError: see :func:`parse_seeds`; or ``--seed`` or a checkpoint is given as well.
    """
    args.seeds = parse_seeds(args.seeds)
    if hasattr(args, "seed"):
        raise UsageError("--seed and --seeds are both given; give one of them")
    if args.resume not in ("auto", "never"):
        raise UsageError(f"--resume is {args.resume}; it must be auto or never with --seeds")
    replace(args.recipe, seed=max(args.seeds))  # which says what is allowed


def runs_of(args: argparse.Namespace) -> list[argparse.Namespace]:
    """The options of each run: those of the command line itself, or a run per seed."""
    if not args.seeds:
        return [args]
    runs = []
    for seed in args.seeds:
        run = copy.copy(args)
        run.recipe, run.out = replace(args.recipe, seed=seed), args.out / f"seed-{seed}"
        run.name = f"{args.name}, seed {seed}" if args.name else None
        runs.append(run)
    return runs


@contextlib.contextmanager
def own_seeds(args: argparse.Namespace, group: Group) -> Iterator[None]:
    """The folder of all seeds, if there are several, for this command alone.

    Raises:
        StorageError: it holds a run itself or a foreign page, is in use, or cannot be written.
    """
    from onecycle.results.folder import RESULTS_FILE, own_folder, prepare_folder

    is_first = group.rank == 0
    with own_folder(args.out, is_first=is_first) if args.seeds else contextlib.nullcontext():
        if args.seeds and is_first:
            if (args.out / RESULTS_FILE).exists():
                prepare_folder(args.out)  # says why not
            check_page(args.out / PAGE)
        yield


def train_each(
    args: argparse.Namespace, group: Group, train_one: Callable[[argparse.Namespace], int]
) -> int:
    """Train one run per seed in turn, then say what they give together; the exit code.

    Args:
        args: with ``seeds``.
        group: its first process writes and speaks.
        train_one: trains a run by its options and gives its exit code; other than 0 ends all.
    """
    runs, is_first = runs_of(args), group.rank == 0
    for run in runs:
        if is_first:
            print(f"Seed {run.recipe.seed} ({runs.index(run) + 1} of {len(runs)})", flush=True)
        if code := train_one(run):
            return code
    if is_first:
        summary = summarise(runs)
        write_file(args.out / SUMMARY_FILE, to_json(summary))
        mean, std, worst = (100 * summary["accuracy"][name] for name in ("mean", "std", "worst"))
        print(
            f"Accuracy of {len(runs)} seeds: mean {mean:.2f} %, standard deviation {std:.2f} %, "
            f"worst {worst:.2f} % (seed {summary['worst_seed']})"
        )
        write_page([run.out for run in runs], args.out / PAGE)
    return 0


def summarise(runs: list[argparse.Namespace]) -> dict[str, Any]:
    """Accuracy and loss after the last epoch over finished runs, in plain data."""
    from onecycle.results.reading import read_results

    found = {run.recipe.seed: read_results(run.out)["evaluation"] for run in runs}
    accuracies = {seed: evaluation["accuracy"] for seed, evaluation in found.items()}
    losses = [evaluation["loss"] for evaluation in found.values()]
    worst = min(accuracies, key=accuracies.get)
    return {
        "runs": {str(run.recipe.seed): run.out.name for run in runs},
        "accuracy": {
            "each": list(accuracies.values()),
            "mean": statistics.fmean(accuracies.values()),
            "std": statistics.stdev(accuracies.values()),
            "worst": accuracies[worst],
        },
        "worst_seed": worst,
        "loss": {
            "each": losses, "mean": statistics.fmean(losses), "std": statistics.stdev(losses),
        },
    }  # fmt: skip
