"""``python -m sb3_trmrl.zoo train --algo trmrl ...``: the zoo's commands where the start-up file is not in place."""

import runpy
import sys

from sb3_trmrl.zoo import register

COMMANDS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "record_video": "rl_zoo3.record_video",
    "all_plots": "rl_zoo3.plots.all_plots",
    "plot_train": "rl_zoo3.plots.plot_train",
    "plot_from_file": "rl_zoo3.plots.plot_from_file",
}
"""What a user types: the zoo's module."""


def main() -> None:
    """
    Register with the zoo, then run one of its commands with the remaining arguments.

    :raises SystemExit: With the usage, if there is no such command
    """
    # `plots.all_plots` as in `python -m rl_zoo3.plots.all_plots`
    command = sys.argv[1].removeprefix("plots.") if len(sys.argv) > 1 else ""
    if command not in COMMANDS:
        raise SystemExit(f"usage: python -m sb3_trmrl.zoo {{{','.join(COMMANDS)}}} ...   (each has its own --help)")
    register()
    del sys.argv[1]
    # As `python -m` does it, so that subprocesses find the zoo's module as their main module
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
