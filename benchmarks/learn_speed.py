"""
Steps per second of a whole ``learn()``, and where the time goes: physics, acting, buffer, update.

    python benchmarks/learn_speed.py
    python benchmarks/learn_speed.py --settings trmrl rl2 --env AntDir-v0

The settings are the blocks of ``hyperparams/*.yml``, unchanged. One iteration warms up, the next ones are measured. The update
is set against the machine's ``sgemm``: floating point operations of all matrix products (attention's own are not counted), by
torch's counter, over the time of the update without the buffer's part.
"""

import argparse
import contextlib
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch as th
from campaign import make_model
from torch.utils.flop_counter import FlopCounterMode

from sb3_trmrl.common import argument_types
from sb3_trmrl.common.onednn_linear import fast_linear
from sb3_trmrl.zoo import ALGORITHMS

COUNTED: dict[Any, Any] = {}
if hasattr(th.ops.mkldnn, "_linear_pointwise"):  # unknown to torch's counter
    COUNTED[th.ops.mkldnn._linear_pointwise] = lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0]


class Clock:
    """Adds up the time spent in functions, without that in clocked functions that they call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    def _enter(self) -> float:
        self._inner.append(0.0)
        return time.perf_counter()

    def _leave(self, label: str, start: float) -> None:
        taken = time.perf_counter() - start
        self.seconds[label] = self.seconds.get(label, 0.0) + taken - self._inner.pop()
        self._inner[-1] += taken

    def watch(self, owner: Any, name: str, label: str) -> None:
        """
        :param owner: An object.
        :param name: One of its methods; what a generator does at each item counts too.
        :param label: Where its time is added.
        """
        method: Callable[..., Any] = getattr(owner, name)

        def items(generator: Iterator[Any]) -> Iterator[Any]:
            while True:
                start = self._enter()
                try:
                    item = next(generator)
                except StopIteration:
                    return
                finally:
                    self._leave(label, start)
                yield item

        def clocked(*args: Any, **kwargs: Any) -> Any:
            start = self._enter()
            try:
                result = method(*args, **kwargs)
            finally:
                self._leave(label, start)
            return items(result) if hasattr(result, "__next__") else result

        # An nn.Module calls the `forward` of its instance, so this works for policies too
        setattr(owner, name, clocked)


def sgemm_gflops(device: str, seconds: float = 1.0) -> float:
    """
    :param device: Where to multiply.
    :param seconds: Time to take.
    :return: The best rate of a product of square matrices, 1024 x 1024 on a CPU and 8192 x 8192 elsewhere, in GFLOP/s.
    """
    size = 1024 if device == "cpu" else 8192
    a, b = th.randn(size, size, device=device), th.randn(size, size, device=device)
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        # An item waits for the device
        th.nn.functional.linear(a, b)[0, 0].item()
        best = max(best, 2 * size**3 / (time.perf_counter() - start) / 1e9)
    return best


def profile(settings: str, env_id: str, n_iterations: int, device: str) -> None:
    """
    Measure and print.

    :param settings: Name of a file in ``hyperparams/``, without suffix.
    :param env_id: Family.
    :param n_iterations: Number of iterations to measure.
    :param device: Where the agent is trained.
    """
    model: Any = make_model(settings, env_id, seed=0, device=device)
    rollout = model.n_steps * model.n_envs
    model.learn(rollout)
    clock = Clock()
    clock.watch(model.env, "step", "physics, tokens, infos")
    clock.watch(model.policy, "forward", "acting")
    clock.watch(model.policy, "state_from_context", "acting")
    for name in ("add", "context", "compute_returns_and_advantage", "get"):
        clock.watch(model.rollout_buffer, name, "buffer")
    clock.watch(model, "train", "update")
    n_updates = model._n_updates
    start = time.perf_counter()
    model.learn(n_iterations * rollout, reset_num_timesteps=False)
    total = time.perf_counter() - start
    update_seconds = clock.seconds["update"]
    clock.seconds["the rest of learn"] = total - sum(clock.seconds.values())
    steps = n_iterations * rollout
    n_epochs = model._n_updates - n_updates
    print(f"\n## {settings}.yml, {env_id}, {device}: {steps / total:,.0f} steps/s\n")
    print("| | us per step | share |\n|---|---:|---:|")
    for label, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"| {label} | {1e6 * seconds / steps:.1f} | {seconds / total:.1%} |")
    # Counting slows down, so it has an update of its own
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter, contextlib.redirect_stdout(None):
        model.train()
    if any(isinstance(module, th.nn.LSTM) for module in model.policy.modules()) and device == "cpu":
        print("\nupdate: what a CPU's LSTM multiplies is not counted by torch, so no GFLOP/s")
        model.env.close()
        return
    flops = counter.get_total_flops() * n_epochs / (model._n_updates - n_updates - n_epochs)
    rate = flops / update_seconds / 1e9
    with fast_linear():  # as `train` does
        limit = sgemm_gflops(device)
    print(f"\nupdate: {rate:.0f} GFLOP/s of {limit:.0f} by sgemm ({rate / limit:.0%})")
    model.env.close()


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = [f"{name}{suffix}" for name in ALGORITHMS for suffix in ("", "_paper")]
    parser.add_argument("--settings", nargs="+", choices=files, default=["trmrl_paper", "trmrl"])
    parser.add_argument("--env", default="HalfCheetahVel-v0", help="a block of these files")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--device", type=argument_types.device, default="cpu", help="cpu or cuda")
    arguments = parser.parse_args()
    where = f"{th.get_num_threads()} threads" if arguments.device == "cpu" else th.cuda.get_device_name(arguments.device)
    print(f"torch {th.__version__}, {where}; torch's own sgemm: {sgemm_gflops(arguments.device):.0f} GFLOP/s")
    for settings in arguments.settings:
        profile(settings, arguments.env, arguments.iterations, arguments.device)


if __name__ == "__main__":
    main()
