"""
Ranges that Optuna draws hyperparameters from (``-optimize``), and what is made of a draw (also for ``--trial-id``).

``n_envs`` and ``n_steps`` stay as in the yaml file: they say how many trials an update sees. What is drawn for
``policy_kwargs`` goes into the file's.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import optuna

from sb3_trmrl.memory_encoders import get_memory_encoder_class

RNNS = ("gru", "lstm")
NET_ARCH = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}


def _suggest_ppo_params(trial: optuna.Trial) -> None:
    # One, two and four trials of a MuJoCo family; where they do not divide the rollout the last minibatch is smaller
    trial.suggest_categorical("batch_size", [400, 800, 1600])
    trial.suggest_float("one_minus_gamma", 0.003, 0.1, log=True)
    trial.suggest_float("one_minus_gae_lambda", 0.01, 0.3, log=True)
    trial.suggest_float("learning_rate", 3e-5, 3e-3, log=True)
    trial.suggest_float("ent_coef", 1e-8, 0.05, log=True)
    trial.suggest_categorical("clip_range", [0.1, 0.2, 0.3])
    trial.suggest_categorical("n_epochs", [5, 10, 20])
    trial.suggest_categorical("target_kl", [0.01, 0.03, 0.1])
    trial.suggest_float("max_grad_norm", 0.3, 2.0)
    trial.suggest_float("log_std_init", -1.5, 0.5)
    trial.suggest_categorical("net_arch", list(NET_ARCH))


def _convert_ppo_params(sampled_params: dict[str, Any], policy_kwargs: dict[str, Any]) -> dict[str, Any]:
    as_they_are = ("batch_size", "learning_rate", "ent_coef", "clip_range", "n_epochs", "target_kl", "max_grad_norm")
    return {
        **{name: sampled_params[name] for name in as_they_are},
        "gamma": 1 - sampled_params["one_minus_gamma"],
        "gae_lambda": 1 - sampled_params["one_minus_gae_lambda"],
        "policy_kwargs": {
            "log_std_init": sampled_params["log_std_init"],
            "net_arch": NET_ARCH[sampled_params["net_arch"]],
            **policy_kwargs,
        },
    }


def into_block(block: Mapping[str, Any], drawn: dict[str, Any]) -> dict[str, Any]:
    """
    :param block: Settings of the yaml file, ``policy_kwargs`` as a dict
    :param drawn: What a function of this module made of a draw
    :return: What was drawn, its ``policy_kwargs`` within the block's. The memory that the block names stays, with what it
        takes of the drawn sizes; but for one of ``RNNS``, in the place of which another of them may be drawn
    """
    old, new = block.get("policy_kwargs") or {}, dict(drawn["policy_kwargs"])
    named = old.get("memory_encoder")
    if named is not None and not (named in RNNS and new.get("memory_encoder") in RNNS):
        new.pop("memory_encoder", None)
    encoder = new.get("memory_encoder", named or "tfixup")
    takes = inspect.signature(get_memory_encoder_class(encoder)).parameters
    sizes = {name: value for name, value in new["memory_encoder_kwargs"].items() if name in takes}
    return {
        **drawn,
        "policy_kwargs": {**old, **new, "memory_encoder_kwargs": {**(old.get("memory_encoder_kwargs") or {}), **sizes}},
    }


def _block_of(trial: optuna.Trial) -> Mapping[str, Any]:
    # The experiment manager puts it there: the zoo does not tell it to samplers
    return getattr(trial, "block", {})


def convert_trmrl_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: Parameters of an Optuna trial
    :return: Keyword arguments for ``TrMRLPPO``
    """
    encoder_kwargs = {
        "embed_dim": 2 ** sampled_params["embed_dim_pow"],
        "n_heads": sampled_params["n_heads"],
        "n_layers": sampled_params["n_layers"],
        "scale_embedding": sampled_params["scale_embedding"],
    }
    return _convert_ppo_params(sampled_params, {"memory_encoder_kwargs": encoder_kwargs})


def sample_trmrl_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    :param trial: Optuna's trial
    :param n_actions: Size of a continuous action (not used; the zoo passes it to every sampler, as the next two)
    :param n_envs: Number of environments (not used)
    :param additional_args: For hindsight replay (not used)
    :return: Keyword arguments for ``TrMRLPPO``
    """
    _suggest_ppo_params(trial)
    trial.suggest_int("embed_dim_pow", 5, 7)
    trial.suggest_categorical("n_heads", [2, 4, 8])
    trial.suggest_int("n_layers", 1, 4)
    trial.suggest_categorical("scale_embedding", [False, True])
    return into_block(_block_of(trial), convert_trmrl_params(trial.params))


def convert_rl2_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: Parameters of an Optuna trial
    :return: Keyword arguments for ``RL2PPO``
    """
    encoder_kwargs = {"hidden_size": 2 ** sampled_params["hidden_size_pow"]}
    return _convert_ppo_params(
        sampled_params, {"memory_encoder": sampled_params["memory_encoder"], "memory_encoder_kwargs": encoder_kwargs}
    )


def sample_rl2_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    :param trial: Optuna's trial
    :param n_actions: Size of a continuous action (not used; the zoo passes it to every sampler, as the next two)
    :param n_envs: Number of environments (not used)
    :param additional_args: For hindsight replay (not used)
    :return: Keyword arguments for ``RL2PPO``
    """
    _suggest_ppo_params(trial)
    trial.suggest_categorical("memory_encoder", list(RNNS))
    trial.suggest_int("hidden_size_pow", 5, 8)
    return into_block(_block_of(trial), convert_rl2_params(trial.params))
