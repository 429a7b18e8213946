"""Settings of ``hyperparams/*.yml`` for those who construct an algorithm themselves."""

import copy
from pathlib import Path
from typing import Any

import torch as th
import yaml
from rl_zoo3.utils import SimpleLinearSchedule

ZOO_ONLY = frozenset({"normalize", "env_wrapper", "vec_env_wrapper", "frame_stack", "monitor_kwargs"})
"""What the zoo does around an algorithm."""


def read_settings(file: str | Path, env_id: str) -> dict[str, Any]:
    """
    Read a block as RL Zoo does: ``lin_3e-4`` is a schedule that falls to zero, ``policy_kwargs`` in quotes are Python.

    :param file: Name of a file in ``hyperparams/``, without suffix; or the path of another one, to be trusted like a program.
    :param env_id: A registered id.
    :return: Its block without callbacks, or the one for ids without a block; a copy.
    :raises ValueError: If the file has neither, no steps or no policy; for what only the zoo can do; for a schedule that is
        not linear.
    """
    from sb3_trmrl import hyperparams_dir

    path = file if isinstance(file, Path) else hyperparams_dir() / f"{file}.yml"
    try:
        blocks = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no yaml file: {error}") from error
    found = blocks.get(env_id, blocks.get("default")) if isinstance(blocks, dict) else None
    if not isinstance(found, dict) or not {"n_timesteps", "policy"} <= set(found):
        raise ValueError(f"{path} must have a block '{env_id}:' (or 'default:') with n_timesteps and policy, got {found!r}.")
    block: dict[str, Any] = {"n_envs": 1, **copy.deepcopy(found)}  # blocks share what yaml's anchors repeat
    block.pop("callback", None)
    if not ZOO_ONLY.isdisjoint(block):
        raise ValueError(f"{path}: {sorted(ZOO_ONLY & set(block))} of {env_id} are for RL Zoo alone, leave them out here.")
    if isinstance(block.get("policy_kwargs"), str):
        try:
            block["policy_kwargs"] = eval(block["policy_kwargs"], {"th": th, "nn": th.nn})
        except Exception as error:
            raise ValueError(f"{path}: policy_kwargs of {env_id} are no Python that works: {error!r}") from error
    for name in ("learning_rate", "clip_range", "clip_range_vf"):
        if isinstance(block.get(name), str):
            kind, _, start = block[name].partition("_")
            if kind != "lin":
                raise ValueError(f"{name} of {env_id} in {path} must be a number or like 'lin_3e-4', got {block[name]!r}.")
            block[name] = SimpleLinearSchedule(start)
    return block
