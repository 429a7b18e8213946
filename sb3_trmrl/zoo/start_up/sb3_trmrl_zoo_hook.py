"""
Makes ``python -m rl_zoo3.train --algo trmrl`` work: RL Zoo fixes the choices of ``--algo`` before it imports anything of ours.

Python executes ``sb3_trmrl_zoo_hook.pth`` when it starts. That line imports this module in programs whose command line names
rl_zoo3, and in no other. The module stands beside the package, not in it, so that nothing heavy (torch) is imported here: it
only waits until one of the zoo's commands is about to be imported, and registers our algorithms then.

``SB3_TRMRL_NO_ZOO_HOOK=1`` switches it off; ``python -m sb3_trmrl.zoo train ...`` needs none of this.
"""

import os
import sys

COMMANDS = ("cli", "train", "enjoy", "record_video", "record_training", "push_to_hub", "load_from_hub", "benchmark", "plots")
"""Modules of rl_zoo3 that a user starts. Registration imports none of them, so none is imported twice."""


class ZooHook:
    """A finder of modules that finds none: being asked for a command of the zoo, it registers our algorithms first."""

    waiting = True

    @classmethod
    def find_spec(cls, name: str, path: object = None, target: object = None) -> None:
        """
        :param name: Full name of the module that is about to be imported
        :param path: Where its package looks for it (not used)
        :param target: For reloading (not used)
        """
        package, _, module = name.partition(".")
        if not cls.waiting or package != "rl_zoo3" or module not in COMMANDS:
            return
        cls.waiting = False
        try:
            from sb3_trmrl.zoo import register

            register()
        except Exception as error:  # the zoo's own algorithms must go on working whatever is wrong with us
            print(
                f"sb3_trmrl could not register its algorithms with RL Zoo ({type(error).__name__}: {error}); the others work. "
                "SB3_TRMRL_NO_ZOO_HOOK=1 keeps it from trying.",
                file=sys.stderr,
            )


if os.environ.get("SB3_TRMRL_NO_ZOO_HOOK", "0") in ("", "0"):
    # In front: Python asks no further once a module is found
    sys.meta_path.insert(0, ZooHook)
