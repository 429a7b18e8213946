"""
Look into a memory while it acts: attention weights per layer and head, and memory embeddings.

Both are recorded from the forward pass that chooses the actions, not from another one: queries, keys and masks at the very
call of ``scaled_dot_product_attention``, features at the return of ``MemoryEncoder.step``. Nothing is recorded, and nothing
costs, outside of :func:`record`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sb3_trmrl.common.evaluation import AdaptationResult, evaluate_adaptation
from sb3_trmrl.common.npz import read_arrays
from sb3_trmrl.common.policies import MemoryActorCriticPolicy
from sb3_trmrl.common.safe_write import replace_file
from sb3_trmrl.envs.meta_env import Task
from sb3_trmrl.memory_encoders import MemoryEncoder, MemoryState
from sb3_trmrl.memory_encoders.attention import newest_in_slots


def attention_weights(
    query: th.Tensor, key: th.Tensor, attn_mask: th.Tensor | None = None, is_causal: bool = False, scale: float | None = None
) -> th.Tensor:
    """
    The weights that ``scaled_dot_product_attention`` multiplies the values with; arguments as there.

    :param query: Shape (..., n_queries, head_dim)
    :param key: Shape (..., n_keys, head_dim)
    :param attn_mask: Bool (True: is seen) or added to the scores, broadcastable to (..., n_queries, n_keys)
    :param is_causal: Query ``i`` sees keys up to ``i``
    :param scale: Of the scores; 1 / sqrt(head_dim) if None
    :return: Shape (..., n_queries, n_keys); rows sum to 1
    """
    scores = query @ key.transpose(-2, -1) * (1.0 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = th.ones(scores.shape[-2:], dtype=th.bool, device=scores.device).tril()
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == th.bool else scores + attn_mask
    return scores.softmax(dim=-1)


class _AttentionCalls(TorchFunctionMode):
    """
    Sees every call of ``scaled_dot_product_attention`` while it is active.

    :param on_call: Gets the weights, (n_envs, ..., n_queries, n_keys).
    """

    def __init__(self, on_call: Callable[[th.Tensor], None]):
        super().__init__()
        self.on_call = on_call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale")
            call = {**dict(zip(names, args, strict=False)), **kwargs}
            self.on_call(
                attention_weights(
                    call["query"], call["key"], call.get("attn_mask"), call.get("is_causal", False), call.get("scale")
                )
            )
        return func(*args, **kwargs)


@dataclass
class Recording:
    """
    What :func:`record` has seen, one entry per step of acting.

    :param embeddings: Features of the memory, (n_envs, features_dim) each
    :param attention: For each step and layer the weights of the acting token, (n_recorded, n_heads, n_keys), and the age of
        what each key belongs to, (n_recorded, n_keys) int64: 0 is the current token, negative is an empty slot. Of memories
        that count their tokens in the last part of their state, int64 (n_envs,), as ours with attention do; else no layers
    """

    embeddings: list[np.ndarray]
    attention: list[list[tuple[np.ndarray, np.ndarray]]]


@contextmanager
def record(model: BaseAlgorithm | MemoryActorCriticPolicy, n_attention: int | None = None) -> Iterator[Recording]:
    """
    Record what the memory of a model does while it acts (``predict``) inside of the ``with`` block.

    :param model: A model of this package, or its policy
    :param n_attention: Record the attention of so many environments only, the first ones; all if None
    :return: The recording, which grows with each step
    :raises ValueError: for a model without memory
    """
    encoder = _encoder(model)
    # An attribute of the instance goes before the method of the class
    original = encoder.step
    recording = Recording([], [])

    def step(tokens: th.Tensor, state: MemoryState, memory_starts: th.Tensor) -> tuple[th.Tensor, MemoryState]:
        calls: list[th.Tensor] = []
        with _AttentionCalls(calls.append):
            features, state = original(tokens, state, memory_starts)
        recording.embeddings.append(features.detach().cpu().numpy().copy())
        whole = _whole_layers(calls) if encoder.training_unit == "window" else calls
        lengths = state[-1].cpu()
        counts = lengths.dtype == th.int64 and lengths.shape == (len(tokens),)
        layers = [_row_of_acting(encoder, weights.cpu(), lengths) for weights in whole] if counts else []
        # Copies: parts of arrays keep all of these alive
        recording.attention.append([(weights[:n_attention].copy(), ages[:n_attention].copy()) for weights, ages in layers])
        return features, state

    encoder.step = step  # type: ignore[method-assign]
    try:
        yield recording
    finally:
        del encoder.step


def _encoder(model: BaseAlgorithm | MemoryActorCriticPolicy) -> MemoryEncoder:
    policy = getattr(model, "policy", model)
    if not isinstance(policy, MemoryActorCriticPolicy):
        raise ValueError(f"model must have a memory, as TrMRLPPO and RL2PPO have, got {type(model).__name__}.")
    return policy.actor_memory


def _whole_layers(calls: list[th.Tensor]) -> list[th.Tensor]:
    """
    :param calls: Weights of the attention over a window, (n_envs, n_heads, n_queries, n_keys), layer by layer. That over a
        long window is cut into blocks of queries, of which only the last one sees all keys (``attend_in_band``).
    :return: Weights of each layer
    """
    n_keys = max((weights.shape[-1] for weights in calls), default=0)
    layers: list[th.Tensor] = []
    blocks: list[th.Tensor] = []
    for weights in calls:
        blocks.append(F.pad(weights, (0, n_keys - weights.shape[-1])))
        if weights.shape[-1] == n_keys:
            layers.append(th.cat(blocks, dim=-2))
            blocks = []
    return layers


def _row_of_acting(encoder: MemoryEncoder, weights: th.Tensor, lengths: th.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """
    :param weights: Of one layer, (n_envs, [n_heads,] n_queries, n_keys).
    :param lengths: Number of tokens in each memory, the current one included, (n_envs,).
    :return: Weights of the current token, (n_envs, n_heads, n_keys), and ages of the keys, (n_envs, n_keys).
    """
    if weights.dim() == 3:  # a single head
        weights = weights.unsqueeze(1)
    n_envs, _, n_queries, n_keys = weights.shape
    if encoder.training_unit == "window":
        # Slots are filled from the left with the newest tokens; with several queries that of the current token is the one
        # whose output acts
        filled = lengths.clamp(max=n_keys)
        ages = filled.unsqueeze(1) - 1 - th.arange(n_keys)
        row = filled - 1 if n_queries > 1 else th.zeros_like(filled)
        weights = weights[th.arange(n_envs), :, row]
    else:
        # A ring of n_keys slots, or as many slots as the longest memory has tokens, where both rules are the same
        positions = newest_in_slots(lengths, n_keys)
        ages = th.where(positions >= 0, lengths.unsqueeze(1) - 1 - positions, -1)
        weights = weights[:, :, 0]
    return weights.numpy(), ages.numpy()


@dataclass(frozen=True)
class Inspection:
    """
    One trial of each task, and what the memory did in it. ``n_steps`` is that of the longest trial.

    :param result: Returns, lengths, tasks
    :param embeddings: Memory embeddings, (n_tasks, n_steps, features_dim); NaN behind the end of a trial
    :param attention: Weights of the first tasks, (n_layers, n_inspected, n_heads, n_steps, n_steps): row ``t`` is what the
        action at step ``t`` was based on, column ``s`` how much of step ``s``; NaN behind the end of a trial. No layers for
        memories without attention
    """

    result: AdaptationResult
    embeddings: np.ndarray
    attention: np.ndarray

    @property
    def episode_starts(self) -> list[np.ndarray]:
        """Steps at which the episodes of each trial start, (n_episodes,) each."""
        return [np.concatenate([[0], np.cumsum(lengths)[:-1]]) for lengths in self.result.lengths]

    def save(self, path: str | Path) -> None:
        """
        :param path: Ending in ``.npz``.
        :raises ValueError: on another ending
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"path must end in .npz, got {str(path)!r}.")
        own = {"embeddings": self.embeddings.astype(np.float32), "attention": self.attention.astype(np.float32)}
        arrays = {**own, **self.result.as_arrays()}
        replace_file(path, lambda partial: np.savez_compressed(partial, **arrays))  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: str | Path) -> "Inspection":
        """
        :param path: File that :meth:`save` has written
        :return: The inspection
        :raises ValueError: on a file that is broken or something else
        """
        result = AdaptationResult.load(path)
        try:
            arrays = read_arrays(Path(path))
            return cls(result, arrays["embeddings"], arrays["attention"])
        except (KeyError, ValueError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(
                f"{path} is no saved Inspection, or it is broken: {reason}. `sb3-trmrl inspect` writes one."
            ) from error


def inspect_trials(
    model: BaseAlgorithm | MemoryActorCriticPolicy,
    env_id: str | Callable[..., gym.Env[Any, Any]] | gym.Env[Any, Any] | VecEnv,
    n_tasks: int = 20,
    n_episodes: int = 2,
    split: str = "test",
    deterministic: bool = True,
    seed: int = 0,
    env_kwargs: dict[str, Any] | None = None,
    tasks: Sequence[Task] | None = None,
    n_attention: int = 1,
) -> Inspection:
    """
    Play one trial of each task as ``evaluate_adaptation`` does, and record the memory.

    :param model: A model of this package, or its policy
    :param env_id: As in ``evaluate_adaptation``
    :param n_tasks: Number of tasks
    :param n_episodes: Episodes per trial
    :param split: Where tasks are drawn from
    :param deterministic: Whether actions are the mode of the policy
    :param seed: Seed of tasks and episodes
    :param env_kwargs: Further keyword arguments of the environment
    :param tasks: Play these tasks instead of drawing ``n_tasks`` of them
    :param n_attention: Record the attention of so many tasks, the first ones: it takes ``n_layers * n_heads * n_steps^2``
        numbers for each
    :return: Results, embeddings, attention
    :raises ValueError: as ``evaluate_adaptation``, for a model without memory, for a negative ``n_attention``, and for a made
        environment with fewer slots than tasks, which would play them one after the other
    """
    if n_attention < 0:
        raise ValueError(f"n_attention must be at least 0, got {n_attention}.")
    if isinstance(env_id, (gym.Env, VecEnv)):
        n_slots, asked = env_id.num_envs if isinstance(env_id, VecEnv) else 1, n_tasks if tasks is None else len(tasks)
        if n_slots < asked:
            raise ValueError(f"env_id has {n_slots} slots for {asked} tasks: give the environment's id, or fewer tasks.")
    with record(model, n_attention) as recording:
        result = evaluate_adaptation(
            model, env_id, n_tasks, n_episodes, split, deterministic, seed, env_kwargs=env_kwargs, tasks=tasks
        )
    ends = result.lengths.sum(axis=1)
    n_steps = int(ends.max())
    # (n_steps, n_tasks, features_dim) -> (n_tasks, n_steps, features_dim)
    embeddings = np.stack(recording.embeddings[:n_steps], axis=1)[: result.n_tasks].copy()
    for task, end in enumerate(ends):
        embeddings[task, end:] = np.nan
    n_layers = len(recording.attention[0])
    n_inspected = min(n_attention, result.n_tasks)
    n_heads = recording.attention[0][0][0].shape[1] if n_layers else 0
    attention = np.zeros((n_layers, n_inspected, n_heads, n_steps, n_steps), dtype=np.float32)
    for t in range(n_steps):
        for layer, (weights, ages) in enumerate(recording.attention[t]):
            for task in range(n_inspected):
                seen = ages[task] >= 0
                attention[layer, task, :, t, t - ages[task, seen]] = weights[task][:, seen].T
    for task, end in enumerate(ends[:n_inspected]):
        attention[:, task, :, end:] = np.nan
        attention[:, task, :, :, end:] = np.nan
    return Inspection(result, embeddings, attention)


def attention_summary(inspection: Inspection) -> list[dict[str, float]]:
    """
    Where each head looks, mean over the steps of the last episode and over the inspected tasks.

    :param inspection: Of any memory
    :return: For each head ``layer`` and ``head`` (from 1), the share of its weights on ``current_step``, ``current_episode``
        (that step included) and ``earlier_episodes``, and ``effective_steps``, the exponential of the weights' entropy: so
        many steps looked at alike have that entropy. Empty for memories without attention, and if that of no task was recorded
    """
    rows: list[dict[str, float]] = []
    n_layers, n_inspected, n_heads = inspection.attention.shape[:3]
    for layer in range(n_layers if n_inspected > 0 else 0):
        for head in range(n_heads):
            parts = []
            for task in range(n_inspected):
                start, end = int(inspection.episode_starts[task][-1]), int(inspection.result.lengths[task].sum())
                weights = inspection.attention[layer, task, head, start:end, :end].astype(np.float64)
                entropy = -np.sum(weights * np.log(np.where(weights > 0.0, weights, 1.0)), axis=1)
                steps = np.arange(end - start)
                parts.append(
                    (
                        weights[steps, start + steps].mean(),
                        weights[:, start:].sum(axis=1).mean(),
                        weights[:, :start].sum(axis=1).mean(),
                        np.exp(entropy).mean(),
                    )
                )
            names = ("current_step", "current_episode", "earlier_episodes", "effective_steps")
            means = np.mean(parts, axis=0).tolist()
            rows.append({"layer": layer + 1, "head": head + 1, **dict(zip(names, means, strict=True))})
    return rows


def project(embeddings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The two directions in which embeddings differ most (principal components).

    :param embeddings: Shape (..., features_dim); NaN rows are left out and stay NaN
    :return: Coordinates, (..., 2), and the share of the variance that each of them shows, (2,)
    :raises ValueError: for less than two directions
    """
    flat = embeddings.reshape(-1, embeddings.shape[-1]).astype(np.float64)
    valid = np.isfinite(flat).all(axis=1)
    if valid.sum() < 2 or flat.shape[1] < 2:
        raise ValueError(f"embeddings must be two vectors of two numbers at least, got {valid.sum()} of {flat.shape[1]}.")
    centred = flat[valid] - flat[valid].mean(axis=0)
    # Of the covariance, which is much smaller than the data
    variances, directions = np.linalg.eigh(centred.T @ centred / len(centred))
    coordinates = np.full((len(flat), 2), np.nan)
    largest = directions[:, [-1, -2]]
    # The sign of an eigenvector is arbitrary: its largest entry is made positive, so that pictures can be compared
    largest = largest * np.sign(largest[np.abs(largest).argmax(axis=0), [0, 1]])
    coordinates[valid] = centred @ largest
    shares = variances[[-1, -2]] / max(variances.sum(), np.finfo(np.float64).tiny)
    return coordinates.reshape(*embeddings.shape[:-1], 2), shares
