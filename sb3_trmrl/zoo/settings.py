"""Settings of ``hyperparams/*.yml`` for those who construct an algorithm themselves."""

import copy
from typing import Any

import yaml
from rl_zoo3.utils import SimpleLinearSchedule


def read_settings(file: str, env_id: str) -> dict[str, Any]:
    """
    Read a block as RL Zoo does: ``lin_3e-4`` is a schedule that falls to zero.

    :param file: Name of a file in ``hyperparams/``, without suffix.
    :param env_id: A registered id.
    :return: Its block without callbacks, or the one for ids without a block; a copy.
    :raises ValueError: For a schedule that is not linear.
    """
    from sb3_trmrl import hyperparams_dir

    blocks = yaml.safe_load((hyperparams_dir() / f"{file}.yml").read_text(encoding="utf-8"))
    # Blocks share what yaml's anchors repeat
    block: dict[str, Any] = copy.deepcopy(blocks.get(env_id, blocks["default"]))
    block.pop("callback", None)
    for name in ("learning_rate", "clip_range", "clip_range_vf"):
        if isinstance(block.get(name), str):
            kind, start = block[name].split("_")
            if kind != "lin":
                raise ValueError(f"{name} of {env_id} in {file}.yml must be a number or like 'lin_3e-4', got {block[name]!r}.")
            block[name] = SimpleLinearSchedule(start)
    return block
