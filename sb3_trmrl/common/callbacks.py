"""Callbacks for meta-training."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from sb3_trmrl.common.arguments import check_flags, check_integers
from sb3_trmrl.common.evaluation import (
    AdaptationResult,
    check_spaces,
    evaluate_adaptation,
    make_trials,
    settings_of,
)
from sb3_trmrl.common.npz import read_arrays
from sb3_trmrl.common.safe_write import replace_file
from sb3_trmrl.envs.registration import evaluation_kwargs

FILE = "meta_evaluations.npz"


class MetaEvalCallback(BaseCallback):
    """
    Evaluate the adaptation curve on held-out tasks while training: one trial of ``n_episodes`` episodes on each of ``n_tasks``
    tasks, the same tasks every time, see :func:`~sb3_trmrl.common.evaluation.evaluate_adaptation`.

    Logs ``meta_eval/return_episode_1``, ... (mean over tasks), ``meta_eval/adaptation_gain`` (last episode minus first) and,
    where the family has success, ``meta_eval/success_episode_1``, ... In ``save_path`` it keeps

    - ``meta_evaluations.npz``, which a continued training (``reset_num_timesteps=False``) goes on with: ``timesteps``
      (n_evaluations,), ``returns``, ``lengths`` and perhaps ``success`` (n_evaluations, n_tasks, n_episodes), ``tasks``
      (n_tasks,) and ``settings`` as JSON,
    - ``best_meta_model.zip``: the model with the highest return, mean over tasks and episodes.

    In a yaml file of RL Zoo, which sets ``save_path``::

        callback:
          - sb3_trmrl.common.callbacks.MetaEvalCallback:
              eval_freq: 100000

    :param eval_freq: Evaluate at the multiples of so many steps of training (all environments together), at least 1
    :param n_tasks: Number of tasks, at least 1
    :param n_episodes: Episodes per trial, at least 1; it may be more than in training
    :param split: Where tasks are drawn from
    :param env_id: Registered id of a trial environment, or a callable that makes one (see ``evaluate_adaptation``); by default
        the id of the training environment, which must have no wrappers around it then that `gym.make` does not make
    :param env_kwargs: Keyword arguments for it, beside those of the training environment if ``env_id`` is not given
    :param deterministic: Whether actions are the mode of the policy
    :param seed: Seed of tasks and episodes; another one than what is reported has, as the best model is chosen on these
    :param save_path: Folder for the two files; None writes none
    :param verbose: 1 tells of new best models
    :param name: What stands for ``meta_eval`` in the log: several callbacks need several names. In RL Zoo, one with another
        name keeps its files in a folder of that name
    :raises ValueError: for a bad number or keyword; when training starts, for an environment without trials, wrappers that
        would be missing, an unknown split, and if a continued training finds evaluations with other settings in ``save_path``
    """

    def __init__(
        self,
        eval_freq: int = 100_000,
        n_tasks: int = 20,
        n_episodes: int = 6,
        split: str = "test",
        env_id: str | Callable[..., gym.Env[Any, Any]] | None = None,
        env_kwargs: dict[str, Any] | None = None,
        deterministic: bool = True,
        seed: int = 10_000,
        save_path: str | Path | None = None,
        verbose: int = 0,
        name: str = "meta_eval",
    ):
        super().__init__(verbose)
        self.name = name
        check_integers(dict(eval_freq=eval_freq, n_tasks=n_tasks, n_episodes=n_episodes))
        check_integers(dict(seed=seed), least=0)
        check_flags(dict(deterministic=deterministic))
        if taken := {"episodes_per_trial", "split", "tasks"} & set(env_kwargs or {}):
            raise ValueError(
                f"env_kwargs must not hold {sorted(taken)}: MetaEvalCallback draws n_tasks tasks of its split, for "
                "trials of n_episodes."
            )
        self.eval_freq, self.n_tasks, self.n_episodes, self.split = eval_freq, n_tasks, n_episodes, split
        self.env_id, self.env_kwargs = env_id, env_kwargs or {}
        self._given_env = env_id, self.env_kwargs
        self.deterministic, self.seed = deterministic, int(seed)  # gymnasium takes no NumPy integers
        self.save_path = None if save_path is None else Path(save_path)
        self.timesteps: list[int] = []
        self.results: list[AdaptationResult] = []
        self.best_mean_return = -np.inf
        self._next_evaluation = eval_freq

    def _init_callback(self) -> None:
        # Perhaps for another training than the last time
        self.env_id, self.env_kwargs = self._given_env
        if self.env_id is None:
            spec = self.training_env.get_attr("spec", indices=0)[0]
            if spec is None:
                raise ValueError("MetaEvalCallback needs env_id: the training environment was not made by gym.make.")
            self.env_id = spec.id
            self.env_kwargs = {**evaluation_kwargs(spec.kwargs), **self.env_kwargs}
        # Made once now, so that what is wrong shows before hours of training
        kwargs = {**self.env_kwargs, "episodes_per_trial": self.n_episodes, "split": self.split}
        trials = make_trials(self.env_id, kwargs)
        if self._given_env[0] is None:
            self._check_wrappers(kwargs)
        check_spaces(self.model, trials)
        trials.close()
        if self.save_path is not None:
            self.save_path.mkdir(parents=True, exist_ok=True)

    def _check_wrappers(self, kwargs: dict[str, Any]) -> None:
        # Not at the top: the Hub's modules know the callbacks
        from sb3_trmrl.hub.description import describe_environment, wrappers_that_play

        around = wrappers_that_play(describe_environment(self.training_env, self.training_env.num_envs))
        if not around:
            return
        assert isinstance(self.env_id, str)
        made = gym.make(self.env_id, **kwargs)  # an id may bring wrappers of its own
        own = [] if made.spec is None else [wrapper.name for wrapper in made.spec.additional_wrappers]
        made.close()
        if missing := [name for name in around if name not in own]:
            raise ValueError(
                f"MetaEvalCallback would evaluate {self.env_id} without {', '.join(missing)}, which training has around it: "
                "give env_id, a registered id or a callable whose environments have them already (or "
                f"{self.env_id!r} itself, if they change nothing for the agent)."
            )

    def _on_training_start(self) -> None:
        self._plan()
        # What this training goes on with: in this callback, or in the file of another one
        if self.num_timesteps > 0 and not self.results:
            self._take_up()
        kept = sum(steps <= self.num_timesteps for steps in self.timesteps) if self.num_timesteps > 0 else 0
        self.timesteps, self.results = self.timesteps[:kept], self.results[:kept]
        self.best_mean_return = max((float(result.curve.mean()) for result in self.results), default=-np.inf)

    def _on_step(self) -> bool:
        if self.num_timesteps >= self._next_evaluation:
            self._plan()
            self._evaluate()
        return True

    def _plan(self) -> None:
        # Multiples of eval_freq, so that a training that was broken off is evaluated when it would have been
        self._next_evaluation = (self.num_timesteps // self.eval_freq + 1) * self.eval_freq

    def _evaluate(self) -> None:
        assert self.env_id is not None
        result = evaluate_adaptation(
            self.model,
            self.env_id,
            n_tasks=self.n_tasks,
            n_episodes=self.n_episodes,
            split=self.split,
            deterministic=self.deterministic,
            seed=self.seed,
            env_kwargs=self.env_kwargs,
        )
        self.timesteps.append(self.num_timesteps)
        self.results.append(result)
        if any(one.success is not None for one in self.results):
            # A family may tell success only where there is some
            none = np.zeros(result.returns.shape, dtype=bool)
            self.results = [one if one.success is not None else replace(one, success=none) for one in self.results]
            result = self.results[-1]
        for index, mean_return in enumerate(result.curve, start=1):
            self.logger.record(f"{self.name}/return_episode_{index}", float(mean_return))
        self.logger.record(f"{self.name}/adaptation_gain", float(result.curve[-1] - result.curve[0]))
        if result.success is not None:
            for index, rate in enumerate(result.success.mean(axis=0), start=1):
                self.logger.record(f"{self.name}/success_episode_{index}", float(rate))
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)
        self._save(float(result.curve.mean()))

    def _settings(self) -> str:
        settings = settings_of(self.env_id, self.env_kwargs, self.split, self.seed, self.deterministic)
        return json.dumps(settings, sort_keys=True, default=str)

    def _take_up(self) -> None:
        path = None if self.save_path is None else self.save_path / FILE
        if path is None or not path.exists():
            return
        try:
            arrays = read_arrays(path)
            settings, tasks = str(arrays["settings"]), [json.loads(task) for task in arrays["tasks"]]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{path} is no file of a MetaEvalCallback, or it is broken ({error!r}): move it away.") from error
        was = {**json.loads(settings), "n_tasks": arrays["returns"].shape[1], "n_episodes": arrays["returns"].shape[2]}
        now = {**json.loads(self._settings()), "n_tasks": self.n_tasks, "n_episodes": self.n_episodes}
        if differing := {key: (was.get(key), now.get(key)) for key in was.keys() | now.keys() if was.get(key) != now.get(key)}:
            told = ", ".join(f"{key} was {old!r} and is {new!r}" for key, (old, new) in sorted(differing.items()))
            raise ValueError(
                f"{path} holds evaluations of this training with other settings ({told}), which can't be compared: use these, "
                "or give the callback another save_path."
            )
        self.timesteps = arrays["timesteps"].tolist()
        for row in range(len(self.timesteps)):
            success = arrays["success"][row] if "success" in arrays else None
            self.results.append(
                AdaptationResult(tasks, arrays["returns"][row], arrays["lengths"][row], success, settings=json.loads(settings))
            )

    def _save(self, mean_return: float) -> None:
        is_best = mean_return > self.best_mean_return
        self.best_mean_return = max(mean_return, self.best_mean_return)
        if is_best and self.verbose > 0:
            print(f"New best mean return on held-out tasks: {mean_return:.2f} after {self.num_timesteps} steps")
        if self.save_path is None:
            return
        if is_best:  # before the file that says so
            replace_file(self.save_path / "best_meta_model.zip", self.model.save)
        arrays = {
            "timesteps": np.array(self.timesteps),
            "returns": np.stack([result.returns for result in self.results]),
            "lengths": np.stack([result.lengths for result in self.results]),
            "tasks": np.array([json.dumps(task) for task in self.results[0].tasks]),
            "settings": np.array(self._settings()),
        }
        if self.results[0].success is not None:
            arrays["success"] = np.stack([result.success for result in self.results])  # type: ignore[misc]
        replace_file(self.save_path / FILE, lambda partial: np.savez(partial, **arrays))  # type: ignore[arg-type]
