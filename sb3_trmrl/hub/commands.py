"""``sb3-trmrl hub push|pull|info``: models on the Hugging Face Hub from the command line."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from sb3_trmrl.common.argument_types import KeyValues
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.hub.description import encode_value
from sb3_trmrl.hub.errors import PretrainedError
from sb3_trmrl.hub.pretrained import check_acts_alone, find_folder, load, read_config, resumes_with


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> list[argparse.ArgumentParser]:
    """
    Add the command ``hub``. Its sub-commands set ``run``, a function of the parsed arguments.

    :param subparsers: Of the command line's parser
    :return: Parsers of those sub-commands that build models
    """
    hub = subparsers.add_parser("hub", help="models on the Hugging Face Hub", description="Models on the Hugging Face Hub.")
    commands = hub.add_subparsers(dest="hub_command", required=True)

    push = commands.add_parser("push", help="publish a saved model with a model card")
    push.add_argument(
        "folder", type=Path, help="folder of save_pretrained (a checkpoint, say), or a zip file of SB3 that you trust"
    )
    push.add_argument("repo_id", help="owner/name on the Hub; made if it is not there")
    push.add_argument("--algo", help="algorithm of a zip file: trmrl or rl2")
    push.add_argument("--env", help="id of the environment of a zip file, for the evaluation")
    push.add_argument(
        "--env-kwargs", nargs="+", action=KeyValues, default={}, metavar="NAME:VALUE", help="its keywords, as in training"
    )
    push.add_argument(
        "--n-tasks", type=int, default=20, help="evaluate on so many unseen tasks for the card (0: not; default 20)"
    )
    push.add_argument("--video", type=Path, help="a video of the agent (mp4)")
    push.add_argument("--train-command", help="command that trained it; by default the one that was recorded, '' for none")
    push.add_argument("--without-training-state", action="store_true", help="weights only: nobody can resume training exactly")
    push.add_argument("--sb3-zip", action="store_true", help="add SB3's zip (a pickle) for huggingface_sb3 and RL Zoo")
    push.add_argument("--private", action="store_true", default=None, help="a new repository is private")
    push.add_argument("--message", help="message of the commit")
    push.add_argument("--create-pr", action="store_true", help="open a pull request instead")
    push.set_defaults(run=_push)

    pull = commands.add_parser("pull", help="download a model, check it")
    pull.add_argument("repo_id", help="owner/name on the Hub")
    target = pull.add_mutually_exclusive_group(required=True)
    target.add_argument("folder", nargs="?", type=Path, help="where it goes, for sb3_trmrl.load")
    target.add_argument("--zoo", type=Path, metavar="LOGS", help="RL Zoo's log folder instead, for rl_zoo3.enjoy")
    pull.set_defaults(run=_pull)

    info = commands.add_parser("info", help="what a model is, without building it")
    info.add_argument("source", help="folder, or owner/name on the Hub")
    info.set_defaults(run=_info)

    for command in (push, pull, info):
        command.add_argument("--revision", help="branch, tag or commit")
        command.add_argument("--token", help="token of the Hub; by default that of `hf auth login`")
    return [push, pull]


RESUMES = {"running trials": "exactly", "fresh trials": "with fresh trials", None: "no: weights only"}
"""What ``info`` says."""


def printable(text: str) -> str:
    """
    :param text: What a file says, which may be anybody's
    :return: It without the control characters that a terminal obeys: as escapes, but for line breaks
    """
    return "".join(sign if sign.isprintable() or sign == "\n" else repr(sign)[1:-1] for sign in text)


def _hub_kwargs(args: argparse.Namespace) -> dict[str, Any]:
    return {} if args.token is None else {"token": args.token}


def _push(args: argparse.Namespace) -> None:
    if not args.folder.is_file() and (args.algo or args.env or args.env_kwargs):
        raise PretrainedError(f"--algo, --env and --env-kwargs are of a zip file; {args.folder} tells its own.")
    model = _load_zip(args) if args.folder.is_file() else load(args.folder, device="cpu")
    address = model.push_to_hub(
        args.repo_id,
        n_eval_tasks=args.n_tasks,
        video=args.video,
        train_command=args.train_command,
        training_state=not args.without_training_state,
        sb3_zip=args.sb3_zip,
        private=args.private,
        revision=args.revision,
        commit_message=args.message,
        create_pr=args.create_pr,
        token=args.token,
    )
    print(f"Published: {address}")


def _load_zip(args: argparse.Namespace) -> MemoryPPO:
    from sb3_trmrl.runs import load_run

    run = load_run(args.folder, args.algo, args.env)
    if not isinstance(run.model, MemoryPPO):
        raise PretrainedError(f"{args.folder} holds a {type(run.model).__name__}, which is no algorithm of this package.")
    check_acts_alone(run.vec_normalize is not None, args.folder)
    run.model.saved_environment = {
        "id": run.env_id,
        "kwargs": encode_value({**run.env_kwargs, **args.env_kwargs}, "env_kwargs"),
        "n_envs": run.model.n_envs,
    }
    return run.model


def _pull(args: argparse.Namespace) -> None:
    from sb3_trmrl.hub.publish import pull, pull_for_zoo

    if args.zoo is None:
        print(f"Saved to {pull(args.repo_id, args.folder, args.revision, **_hub_kwargs(args))}")
        return
    run = pull_for_zoo(args.repo_id, args.zoo, args.revision, **_hub_kwargs(args))
    name, _, number = run.name.rpartition("_")
    # The folder's name has no slashes, which ids may have
    algo, env = run.parent.name, yaml.safe_load((run / name / "args.yml").read_text(encoding="utf-8"))["env"]
    print(f"Saved to {run}. Watch it: python -m rl_zoo3.enjoy --algo {algo} --env {env} -f {args.zoo} --exp-id {number}")


def _info(args: argparse.Namespace) -> None:
    folder = find_folder(args.source, args.revision, **_hub_kwargs(args))
    config = read_config(folder)
    environment, training = config["environment"], config["training"]
    lines = {
        "algorithm": f"{config['algorithm']}, {config['policy']}",
        "environment": f"{environment['id']} {environment['kwargs'] or ''}, {environment['n_envs']} slots"
        + (f", in {', '.join(environment['wrappers'])}" if environment.get("wrappers") else ""),
        "steps": f"{training['num_timesteps']:,}",
        "command": training["command"] or "-",
        "resumes": RESUMES[resumes_with(folder, config)],
        "versions": ", ".join(f"{name} {version}" for name, version in config["versions"].items()),
        "files": ", ".join(f"{name} ({(folder / name).stat().st_size:,} bytes)" for name in config["files"]),
        "folder": str(folder),
    }
    for name, text in lines.items():
        print(printable(f"{name:<12} {text}"))
