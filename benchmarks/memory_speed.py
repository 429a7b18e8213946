"""
Speed and memory use of the memory encoders, and RL2PPO against sb3-contrib's RecurrentPPO.

    python benchmarks/memory_speed.py
    python benchmarks/memory_speed.py --encoders window trial --lengths 5 400

Every measurement has a process of its own (peak memory) and all take turns for ``--rounds`` rounds, so that a machine whose
speed drifts treats them alike; the best round counts. Acting is one call of the policy for 20 environments at trial time
``length``; an update is ``evaluate_actions``, PPO's loss, backward and an Adam step on a minibatch of about
``--batch-size`` steps.
"""

import argparse
import contextlib
import multiprocessing
import resource
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_trmrl import RL2PPO, TrMRLPolicy
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.onednn_linear import fast_linear
from sb3_trmrl.common.type_aliases import MemoryWindows, TrialSlices
from sb3_trmrl.memory_encoders.attention import TransformerLayer

N_ENVS = 20
TOKEN_DIM = 28
"""HalfCheetahDir's: 20 observations, 6 actions, reward, done."""

TRANSFORMER: dict[str, Any] = dict(embed_dim=128, n_heads=4, n_layers=2)
SIZES: dict[str, dict[str, Any]] = {
    "": TRANSFORMER,
    ", 4 layers, 4 heads": dict(TRANSFORMER, n_layers=4),
    ", 4 layers, 16 heads": dict(TRANSFORMER, n_layers=4, n_heads=16),
}
"""Ends of the names of transformers, and their sizes; the last one is the paper's."""
ALL_OUTPUTS = ", all outputs"
"""
Mark of windows as the author's code has them: the last layer computes all W outputs (ours: the last one), and linear
layers are torch's own.
"""
BAND = "band of 64"
"""The trial's transformer as ``hyperparams/trmrl.yml`` has it for the MuJoCo families."""
TRANSFORMERS = [f"{kind}{size}" for size in SIZES for kind in ("window", "trial", BAND)]
ENCODERS = [*TRANSFORMERS, *(f"window{size}{ALL_OUTPUTS}" for size in SIZES), "gru", "lstm", "gtrxl", "snail"]


def memory(encoder: str, length: int) -> tuple[str, dict[str, Any]]:
    """
    :param encoder: One of ``ENCODERS``.
    :param length: Length of window or trial.
    :return: Name and keywords of the memory encoder.
    """
    if encoder in ("gru", "lstm"):
        return encoder, dict(hidden_size=128)
    if encoder == "snail":
        return encoder, dict(memory_length=max(length, 64))
    if encoder == "gtrxl":
        return encoder, dict(TRANSFORMER, memory_length=max(length, 64))
    kind, comma, size = encoder.removesuffix(ALL_OUTPUTS).partition(",")
    lengths = {"window": length, "trial": max(length, 64), BAND: 64}
    attention = "window" if kind == "window" else "trial"
    return "tfixup", dict(SIZES[comma + size], attention=attention, memory_length=lengths[kind])


def _all_outputs(layer: TransformerLayer, x: th.Tensor, position: th.Tensor) -> th.Tensor:
    return layer(x)[th.arange(len(x)), position]


def make_policy(encoder: str, length: int) -> TrMRLPolicy:
    """
    :param encoder: One of ``ENCODERS``.
    :param length: Length of window or trial.
    :return: A policy with that memory.
    """
    th.manual_seed(0)
    name, kwargs = memory(encoder, length)
    if encoder.endswith(ALL_OUTPUTS):  # in a process of its own
        TransformerLayer.forward_at = _all_outputs  # type: ignore[assignment, method-assign]
    return TrMRLPolicy(
        spaces.Box(-np.inf, np.inf, (TOKEN_DIM,)),
        spaces.Box(-1, 1, (6,)),
        lambda _: 3e-4,
        memory_encoder=name,
        memory_encoder_kwargs=kwargs,
    )


def best_time(function: Callable[[], Any], seconds: float, at_least: int = 3) -> float:
    """
    :param function: What to time.
    :param seconds: About how long to go on.
    :param at_least: How many calls at least.
    :return: Seconds of a call, the median.
    """
    times: list[float] = []
    while len(times) < at_least or sum(times) < seconds:
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def acting(encoder: str, length: int, seconds: float) -> float:
    """
    :param encoder: One of ``ENCODERS``.
    :param length: Trial time.
    :param seconds: About how long to measure.
    :return: Seconds per call for all environments.
    """
    policy = make_policy(encoder, length)
    policy.set_training_mode(False)
    generator = th.Generator().manual_seed(0)
    tokens = th.randn(length + 1, N_ENVS, TOKEN_DIM, generator=generator)
    starts = th.zeros(N_ENVS, dtype=th.bool)
    with th.no_grad():
        state = policy.initial_state(N_ENVS)
        for t in range(max(0, length - 3), length) if encoder.startswith("window") else range(length):
            _, _, _, state = policy(tokens[t], state, starts)
        if encoder.startswith("window"):  # as full as it gets
            state = (state[0], th.full_like(state[1], length))
        # The same step again and again: what it writes to the memory is what it wrote before
        return best_time(lambda: policy(tokens[-1], state, starts), seconds)


def update(encoder: str, length: int, seconds: float, batch_size: int) -> tuple[float, int]:
    """
    :param encoder: One of ``ENCODERS``.
    :param length: Length of window or trial.
    :param seconds: About how long to measure.
    :param batch_size: Steps per minibatch, about.
    :return: Seconds per minibatch and its number of steps.
    """
    policy = make_policy(encoder, length)
    policy.set_training_mode(True)
    if policy.actor_memory.training_unit == "window":
        # Long windows need much memory
        n_steps = min(batch_size, max(8, 40_000 // length))
        observations: Any = MemoryWindows(th.randn(n_steps, length, TOKEN_DIM), th.full((n_steps,), length))
    else:
        n_slices = max(1, batch_size // length)
        n_steps = n_slices * length
        observations = TrialSlices(
            th.randn(n_slices, length, TOKEN_DIM),
            th.zeros(n_slices, dtype=th.int64),
            th.ones(n_slices, length, dtype=th.bool),
        )
    actions, advantages, old_log_prob = th.randn(n_steps, 6), th.randn(n_steps), th.randn(n_steps)

    def step() -> None:
        values, log_prob, entropy = policy.evaluate_actions(observations, actions)
        ratio = th.exp((log_prob - old_log_prob).clamp(-1, 1))
        loss = -(advantages * ratio).mean() + 0.5 * values.pow(2).mean() - 0.0 * entropy.mean()  # type: ignore[union-attr]
        policy.optimizer.zero_grad()
        loss.backward()
        th.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        policy.optimizer.step()

    # `train` does it so; the author's code has torch's own linear layers
    with contextlib.nullcontext() if encoder.endswith(ALL_OUTPUTS) else fast_linear():
        return best_time(step, seconds), n_steps


def measure(job: tuple[str, int, float, int]) -> dict[str, Any]:
    """
    :param job: Encoder, length, seconds, steps per minibatch.
    :return: Steps per second of acting and update, and the process's additional peak memory in MB.
    """
    encoder, length, seconds, batch_size = job
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    act = acting(encoder, length, seconds)
    act_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds_per_batch, n_steps = update(encoder, length, seconds, batch_size)
    return dict(
        encoder=encoder,
        length=length,
        act=N_ENVS / act,
        update=n_steps / seconds_per_batch,
        act_mb=(act_memory - before) / 1024,
        update_mb=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    )


def learn(algorithm: str) -> float:
    """
    :param algorithm: ``"RL2PPO"``, ``"RecurrentPPO"`` or ``"RecurrentPPO, shared"``.
    :return: Steps per second of ``learn`` over two iterations, after one that warms up.
    """
    from sb3_contrib import RecurrentPPO

    warnings.simplefilter("ignore")
    env = make_meta_vec_env("HalfCheetahVel-v0", n_envs=N_ENVS, seed=0)
    ppo: dict[str, Any] = dict(n_steps=400, batch_size=800, n_epochs=10, gamma=0.97, gae_lambda=0.9, seed=0, device="cpu")
    if algorithm == "RL2PPO":
        kwargs: dict[str, Any] = dict(memory_encoder="lstm", memory_encoder_kwargs=dict(hidden_size=128))
        model: Any = RL2PPO("RL2Policy", env, policy_kwargs=kwargs, **ppo)
    else:
        kwargs = dict(lstm_hidden_size=128)
        if algorithm == "RecurrentPPO, shared":
            kwargs.update(shared_lstm=True, enable_critic_lstm=False)
        model = RecurrentPPO("MlpLstmPolicy", env, policy_kwargs=kwargs, **ppo)
    steps = N_ENVS * 400
    model.learn(steps)
    start = time.perf_counter()
    model.learn(2 * steps, reset_num_timesteps=False)
    return 2 * steps / (time.perf_counter() - start)


def acting_ratio(job: tuple[str, int, float]) -> float:
    """
    :param job: Encoder, trial time, seconds.
    :return: Seconds per call.
    """
    return acting(*job)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    table = ["window", "trial", "gru", "lstm", "gtrxl", "snail"]
    parser.add_argument(
        "--encoders", nargs="+", choices=ENCODERS, default=table, help="beside trial against window, always measured"
    )
    parser.add_argument("--lengths", nargs="+", type=int, default=[5, 50, 400, 2000])
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=1600, help="steps per minibatch; 1600: hyperparams/trmrl.yml's")
    parser.add_argument("--skip-learn", action="store_true", help="leave out RL2PPO against RecurrentPPO")
    arguments = parser.parse_args()
    print(f"torch {th.__version__}, {th.get_num_threads()} threads\n")

    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        cells: dict[tuple[str, int], dict[str, Any]] = {}
        pairs = [(encoder, length) for length in arguments.lengths for encoder in arguments.encoders]
        kinds = (("window", "", 5), ("window", ALL_OUTPUTS, 5), ("trial", "", 400), (BAND, "", 400))
        pairs += [
            pair
            for size in SIZES
            for pair in ((f"{kind}{size}{mark}", length) for kind, mark, length in kinds)
            if pair not in pairs
        ]
        for _ in range(arguments.rounds):
            for result in pool.imap(measure, [(*pair, arguments.seconds, arguments.batch_size) for pair in pairs]):
                key = (result["encoder"], result["length"])
                old = cells.get(key, result)
                cells[key] = {name: max(old[name], result[name]) for name in ("act", "update", "act_mb", "update_mb")}
        print("| memory | length | acting, steps/s | update, steps/s | acting, MB | update, MB |")
        print("|---|---|---|---|---|---|")
        for (encoder, length), cell in cells.items():
            print(
                f"| {encoder} | {length} | {cell['act']:,.0f} | {cell['update']:,.0f} | {cell['act_mb']:.0f} | "
                f"{cell['update_mb']:.0f} |"
            )
        print("\nUpdate, trial of 400 against windows of 5: with all outputs (the author's), and ours")
        for size in SIZES:
            ours, author, *trials = (cells[f"{kind}{size}{mark}", length]["update"] for kind, mark, length in kinds)
            for name, trial in zip(("whole trial", BAND), trials, strict=True):
                print(f"{size.removeprefix(', ') or '2 layers, 4 heads'}, {name}: {trial / author:.2f}, {trial / ours:.2f}")
        print()

        jobs = [("trial", 10), ("trial", 400), (BAND, 100), (BAND, 2000)]
        best = dict.fromkeys(jobs, np.inf)
        for _ in range(2 * arguments.rounds):
            for job, seconds in zip(jobs, pool.imap(acting_ratio, [(*job, arguments.seconds) for job in jobs]), strict=True):
                best[job] = min(best[job], seconds)
        for early, late in (jobs[:2], jobs[2:]):
            print(
                f"Acting, {early[0]}: {1000 * best[early]:.2f} ms at trial time {early[1]}, {1000 * best[late]:.2f} ms at "
                f"{late[1]}: {best[late] / best[early]:.2f}x"
            )
        if not arguments.skip_learn:
            names = ["RL2PPO", "RecurrentPPO, shared", "RecurrentPPO"]
            speeds = dict.fromkeys(names, 0.0)
            for _ in range(arguments.rounds):
                for name, speed in zip(names, pool.imap(learn, names), strict=True):
                    speeds[name] = max(speeds[name], speed)
            print("\nlearn(): LSTM 128, 20 environments, 400 steps, 10 epochs, 2 sequences per minibatch")
            for name in names:
                print(f"{name}: {speeds[name]:,.0f} steps/s ({speeds['RL2PPO'] / speeds[name]:.1f}x)")


if __name__ == "__main__":
    main()
