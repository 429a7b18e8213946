"""The command line: which commands and arguments there are."""

import argparse
from pathlib import Path

from sb3_trmrl import __version__
from sb3_trmrl.cli.commands import compare, evaluate, inspect, references, report
from sb3_trmrl.cli.plot import plot
from sb3_trmrl.common.argument_types import KeyValues, device
from sb3_trmrl.common.references import AGENTS
from sb3_trmrl.hub.commands import add_parser as add_hub_parser
from sb3_trmrl.runs import ALGORITHMS


def add_gym_packages(parser: argparse._ActionsContainer) -> None:
    """
    Add RL Zoo's option for what users have registered.

    :param parser: Parser of a command, or a group of its arguments.
    """
    parser.add_argument(
        "--gym-packages", nargs="+", default=[], metavar="MODULE", help="modules that register environments or encoders"
    )


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and environment")
    group.add_argument("--algo", choices=ALGORITHMS, help="algorithm of a zip file that lies in no log folder of RL Zoo")
    group.add_argument("--env", metavar="ID", help="environment, if the run does not tell it or for another one")
    group.add_argument("--env-kwargs", nargs="+", action=KeyValues, default={}, metavar="NAME:VALUE", help="its keywords")
    group.add_argument("--device", type=device, default="cpu", help="where the model runs (default: %(default)s)")
    add_gym_packages(group)


def _add_evaluation_arguments(parser: argparse.ArgumentParser, n_episodes: int = 6) -> None:
    group = parser.add_argument_group("evaluation")
    group.add_argument("--n-tasks", type=int, default=20, metavar="N", help="number of tasks (default: %(default)s)")
    group.add_argument(
        "--n-episodes", type=int, default=n_episodes, metavar="N", help="episodes per trial (default: %(default)s)"
    )
    group.add_argument("--seed", type=int, default=0, help="seed of tasks and episodes (default: %(default)s)")


MODEL_HELP = "log folder of RL Zoo, zip file, folder of save_pretrained, or user/repository on the Hugging Face Hub"


def make_parser() -> argparse.ArgumentParser:
    """:return: The parser of the command line."""
    # The parsers' prog is fixed: `python -m sb3_trmrl` shows the same help
    parser = argparse.ArgumentParser(prog="sb3-trmrl", description="How fast does it adapt, and how sure are we?")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.set_defaults(gym_packages=[])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    sub = commands.add_parser("evaluate", help="adaptation curve on unseen tasks, with intervals and references")
    sub.add_argument("model", help=MODEL_HELP)
    _add_model_arguments(sub)
    _add_evaluation_arguments(sub)
    sub.add_argument("--split", nargs="+", default=["test"], metavar="SPLIT", help="train, test, ood (default: test)")
    sub.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the most probable ones")
    sub.add_argument("--n-envs", type=int, metavar="N", help="tasks played side by side (default: all)")
    sub.add_argument("--no-references", action="store_true", help="without oracle, reactive, blind and random")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument(
        "-o", "--output", nargs="+", type=Path, default=[], metavar="FILE",
        help="result.npz or result.json (for compare, plot), curve.png, curve.svg; several splits: a file for each",
    )  # fmt: skip
    sub.set_defaults(run=evaluate)

    sub = commands.add_parser("compare", help="several agents on the same tasks: table and picture")
    sub.add_argument(
        "agents", nargs="+", metavar="[NAME=]PATH[,PATH...]", help="saved results or models; several paths: seeds"
    )
    _add_model_arguments(sub)
    _add_evaluation_arguments(sub)
    sub.add_argument("--split", default="test", help="for models (default: %(default)s)")
    sub.add_argument("--stochastic", action="store_true", help="sample actions instead of taking the most probable ones")
    sub.add_argument("--n-envs", type=int, metavar="N", help="tasks played side by side (default: all)")
    sub.add_argument("--no-references", action="store_true", help="without oracle, reactive, blind and random")
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("-o", "--output", nargs="+", type=Path, default=[], metavar="FILE", help="picture: png, svg, pdf")
    sub.set_defaults(run=compare)

    sub = commands.add_parser(
        "plot",
        help="one picture from files",
        description="adaptation, tasks, profile: from results of `evaluate -o`. learning: from log folders of SB3 and RL Zoo. "
        "attention, embeddings: from inspection.npz of `inspect`.",
    )
    kinds = ["adaptation", "tasks", "profile", "learning", "attention", "embeddings"]
    sub.add_argument("kind", choices=kinds, metavar="KIND", help=", ".join(kinds))
    sub.add_argument("input", nargs="+", metavar="[NAME=]PATH", help="files or folders; names for the legend")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="png, svg, pdf")
    sub.add_argument("--title", default="", help="of the picture (default: none)")
    sub.add_argument("--parameter", help="tasks, embeddings: which task parameter, for example velocity or goal[0]")
    sub.add_argument("--task", type=int, default=0, help="attention: of which inspected task (default: %(default)s)")
    add_gym_packages(sub)
    sub.set_defaults(run=plot)

    sub = commands.add_parser("inspect", help="attention weights and memory embeddings while acting")
    sub.add_argument("model", help=MODEL_HELP)
    _add_model_arguments(sub)
    _add_evaluation_arguments(sub, n_episodes=2)
    sub.add_argument("--split", default="test", help="train, test, ood (default: %(default)s)")
    sub.add_argument(
        "--n-attention", type=int, default=1, metavar="N", help="attention of so many tasks (default: %(default)s)"
    )
    sub.add_argument("--json", action="store_true", help="print JSON")
    sub.add_argument("-o", "--output", type=Path, metavar="FOLDER", help="for inspection.npz, attention.png, embeddings.png")
    sub.set_defaults(run=inspect)

    sub = commands.add_parser("report", help="everything about a run in one HTML file")
    sub.add_argument("model", help=MODEL_HELP)
    _add_model_arguments(sub)
    _add_evaluation_arguments(sub)
    sub.add_argument("--split", nargs="+", metavar="SPLIT", help="default: all that the family has")
    sub.add_argument("-o", "--output", type=Path, default=Path("report.html"), metavar="FILE", help="default: %(default)s")
    sub.set_defaults(run=report)

    sub = commands.add_parser("references", help="make oracle, reactive, blind and random of a family")
    sub.add_argument("family", metavar="ID", help="registered id, for example HalfCheetahVel-v0")
    sub.add_argument(
        "--agents",
        nargs="+",
        choices=AGENTS,
        default=list(AGENTS),
        metavar="AGENT",
        help=f"{', '.join(AGENTS)} (default: all)",
    )
    sub.add_argument("--conf-file", type=Path, metavar="FILE", help="yaml file of settings (default: hyperparams/trmrl.yml)")
    sub.add_argument("--timesteps", type=int, metavar="N", help="steps of training of each (default: what that file says)")
    sub.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="SEED", help="seeds of training (default: 0)")
    sub.add_argument("--n-tasks", type=int, default=40, metavar="N", help="tasks of each split (default: %(default)s)")
    sub.add_argument("--n-episodes", type=int, default=6, metavar="N", help="episodes per task (default: %(default)s)")
    sub.add_argument("--eval-seed", type=int, default=0, metavar="SEED", help="seed of tasks and episodes (default: 0)")
    sub.add_argument(
        "--env-kwargs", nargs="+", action=KeyValues, default={}, metavar="NAME:VALUE",
        help="keywords of the family; others than its defaults have references of their own",
    )  # fmt: skip
    add_gym_packages(sub)
    sub.add_argument("--json", action="store_true", help="print the file")
    sub.add_argument(
        "-o", "--output", type=Path, metavar="PATH",
        help="file or folder; what is elsewhere than in ~/.cache/sb3_trmrl/references, the default, no evaluation finds",
    )  # fmt: skip
    sub.set_defaults(run=references)

    for sub in add_hub_parser(commands):
        add_gym_packages(sub)
    return parser
