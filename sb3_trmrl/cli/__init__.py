"""The command ``sb3-trmrl``: evaluate, compare, plot, inspect, report, references, hub (docs/guide/evaluation.md)."""

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence

import gymnasium as gym

from sb3_trmrl.cli.parser import make_parser
from sb3_trmrl.hub.commands import printable


def main(command_line: Sequence[str] | None = None) -> int:
    """
    The entry point.

    :param command_line: Arguments; those of the process if None.
    :return: Exit code: 0, or 1 after an error that the user can mend. (argparse ends with 2 after wrong usage.)
    """
    code = _run(sys.argv[1:] if command_line is None else list(command_line))
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as `head`; Python's own flush at exit would complain
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(command_line: list[str]) -> int:
    arguments = make_parser().parse_args(command_line)
    arguments.command_line = command_line
    try:
        if arguments.gym_packages and "" not in sys.path:
            # A module in the current folder is found as by `python -m`, which a console script does not do
            sys.path.insert(0, "")
        for module in arguments.gym_packages:
            importlib.import_module(module)
        arguments.run(arguments)
    except (gym.error.NameNotFound, gym.error.NamespaceNotFound) as error:
        hint = "If a module registers it, name that with --gym-packages."
        print(printable(f"sb3-trmrl: error: {error} {hint}"), file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError, gym.error.Error) as error:
        print(printable(f"sb3-trmrl: error: {error}"), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("sb3-trmrl: interrupted", file=sys.stderr)
        return 130
    return 0
