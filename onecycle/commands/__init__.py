"""The command line: ``onecycle train``, ``evaluate``, ``compare`` and others, see ``COMMANDS``.

A command is a module with ``ABOUT`` (its description), ``add_options(parser)``, ``check(args)`` for
what can be refused before torch is imported, ``main(args)``, which gives the exit code, and
``kept(args)``, what an interruption leaves behind.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from onecycle import __version__
from onecycle.commands import app, compare, evaluate, export, predict, train
from onecycle.commands.common import (
    Parser,
    check_environment,
    command_of,
    complain,
    run_command,
    say,
)
from onecycle.errors import UsageError

__all__ = ["COMMANDS", "Parser", "complain", "main", "make_parser", "run_command", "say"]

COMMANDS = {
    "train": train, "evaluate": evaluate, "compare": compare, "predict": predict, "app": app,
    "export": export,
}  # fmt: skip


def make_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="onecycle",
        description="Train, evaluate and explain small image classifiers.",
        epilog="For example: onecycle train --dataset digits. The options of a command are shown "
        "by onecycle COMMAND --help.",
    )
    parser.add_argument("--version", action="version", version=f"onecycle {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        about = command.ABOUT
        added = commands.add_parser(name, help=about.split(". ")[0].rstrip("."), description=about)
        command.add_options(added)
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The checked options of a command line, without torch.

    Raises:
        UsageError: a command is missing or an option is wrong.
    """
    args = make_parser().parse_args(arguments)
    if args.command is None:
        raise UsageError(f"name a command: {', '.join(COMMANDS)} (onecycle --help describes them)")
    args.command_line = command_of(arguments)
    check_environment()
    COMMANDS[args.command].check(args)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit code.

    Args:
        argv: the command and its options; None: those that the program was started with.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    parsed: list[argparse.Namespace] = []

    def run() -> int:
        parsed.append(parse(arguments))
        (args,) = parsed
        return COMMANDS[args.command].main(args)

    def kept() -> str:
        return COMMANDS[parsed[0].command].kept(parsed[0]) if parsed else "nothing is written"

    return run_command(run, kept=kept)
