"""RL Zoo's experiment manager, for the algorithms and environments of this package."""

import argparse
import inspect
import threading
from collections import OrderedDict
from pathlib import Path
from pprint import pprint
from typing import Any

import gymnasium as gym
import optuna
import rl_zoo3.exp_manager as zoo_module
from gymnasium.envs.registration import load_env_creator
from rl_zoo3.exp_manager import ExperimentManager as ZooExperimentManager
from rl_zoo3.utils import ALGOS
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_trmrl import hyperparams_dir
from sb3_trmrl.common.callbacks import MetaEvalCallback
from sb3_trmrl.common.env_util import fastest_vec_env
from sb3_trmrl.common.evaluation import derived_seed
from sb3_trmrl.envs.registration import evaluation_kwargs
from sb3_trmrl.hub import PretrainedCheckpointCallback
from sb3_trmrl.zoo.hyperparams_opt import into_block


def _takes_split(env_id: str) -> bool:
    """:return: Whether an id makes trial environments, ours or a user's own: whether its entry point names their keywords."""
    entry_point = gym.spec(env_id).entry_point
    maker = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    try:
        return {"episodes_per_trial", "split"} <= set(inspect.signature(maker).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # no entry point, or one without a signature
        return False


class MetaExperimentManager(ZooExperimentManager):
    """
    The zoo's manager with other defaults where algorithm or environment are ours. What the command line says goes first.

    - Algorithm: its file in ``hyperparams/`` of this package. A ``--conf-file hyperparams/...`` that does not exist is looked
      for in that folder too.
    - Environment, ours or another one with splits: the vectorised environment that steps it fastest (``--vec-env subproc``
      stays). Evaluation with the keywords of training, but for those that augment it, on the test split; on other tasks of
      the train split when hyperparameters are optimised, since the test tasks are there to judge them.

    :param args: Parsed command line
    :param algo: Name of the algorithm
    :param env_id: Registered id
    :param other_args: Further arguments of the zoo's manager
    :param config: ``--conf-file``
    :param other_kwargs: Further keyword arguments of the zoo's manager
    """

    def __init__(
        self,
        args: argparse.Namespace,
        algo: str,
        env_id: str,
        *other_args: Any,
        config: str | None = None,
        **other_kwargs: Any,
    ):
        self._has_splits = _takes_split(env_id)
        self._seed_lock = threading.RLock()
        self._is_ours = ALGOS[algo].__module__.startswith("sb3_trmrl.")
        if self._is_ours:
            ours = hyperparams_dir().parent / (config or f"hyperparams/{algo}.yml")
            if config is None or (ours.is_file() and not Path(config).exists()):
                config = str(ours)
        zoo_default = config is None
        super().__init__(args, algo, env_id, *other_args, config=config, **other_kwargs)  # type: ignore[misc]
        if algo == "ppo_lstm" and self._has_splits and zoo_default:
            # The zoo's own default for environments without a block names a policy that RecurrentPPO does not have
            self.custom_hyperparams = {"policy": "MlpLstmPolicy", **(self.custom_hyperparams or {})}
        if self._has_splits and self.vec_env_class is DummyVecEnv:
            self.vec_env_class = fastest_vec_env  # type: ignore[assignment]

    @property
    def eval_env_kwargs(self) -> dict[str, Any]:
        """Keywords of the evaluation environment. The zoo would take those of the yaml file for training only."""
        if not self._has_splits:
            return self._zoo_eval_env_kwargs
        split = "train" if self.optimize_hyperparameters else "test"
        names = {"episodes_per_trial", "render_mode", *evaluation_kwargs(self.env_kwargs)}
        kept = {name: value for name, value in self.env_kwargs.items() if name in names}
        return {**kept, "split": split, **(self._eval_env_kwargs_args or {})}

    @eval_env_kwargs.setter
    def eval_env_kwargs(self, eval_env_kwargs: dict[str, Any]) -> None:
        self._zoo_eval_env_kwargs = eval_env_kwargs

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        Make and wrap environments. Those of evaluation have a seed of their own: with that of training, which the zoo takes,
        the first slot would play the very tasks of the first training slot.

        :param n_envs: How many slots
        :param eval_env: Whether they are for evaluation
        :param no_log: Whether Monitor writes no file
        :return: The environments
        """
        with self._seed_lock:  # --n-jobs of an optimisation are threads, and the zoo reads self.seed
            training_seed = self.seed
            if eval_env and self._has_splits:
                self.seed = derived_seed(training_seed, 1)
            try:
                return super().create_envs(n_envs, eval_env, no_log)
            finally:
                self.seed = training_seed

    def create_log_folder(self) -> None:
        """
        Make the folder of the run, and tell it to callbacks of the yaml file that write there.

        :raises ValueError: If two of them would write the same files
        """
        super().create_log_folder()
        names = [callback.name for callback in self.callbacks if isinstance(callback, MetaEvalCallback)]
        if len(set(names)) < len(names):
            raise ValueError(f"MetaEvalCallbacks need a name each, got {names}: give one of them 'name: meta_eval_ood', say.")
        folder = Path(self.save_path)
        saving = [callback for callback in self.callbacks if isinstance(callback, PretrainedCheckpointCallback)]
        if sum(callback.save_path is None for callback in saving) > 1:
            raise ValueError("PretrainedCheckpointCallbacks remove each other's checkpoints: give them a save_path each.")
        for callback in self.callbacks:
            if isinstance(callback, MetaEvalCallback) and callback.save_path is None:
                callback.save_path = folder if callback.name == "meta_eval" else folder / callback.name
            if isinstance(callback, PretrainedCheckpointCallback) and callback.save_path is None:
                callback.save_path = folder / "checkpoints"
        if self.optimize_hyperparameters and self.callbacks:
            # Trials of a study keep no checkpoints: each would find those of another one
            named = self.specified_callbacks if isinstance(self.specified_callbacks, list) else [self.specified_callbacks]
            pairs = zip(named, self.callbacks, strict=True)
            self.specified_callbacks = [
                name for name, callback in pairs if not isinstance(callback, PretrainedCheckpointCallback)
            ]

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Read the block of the yaml file. What ``--trial-id`` has drawn goes into it, as it did in that trial.

        :return: Hyperparameters, and the same sorted, as they are saved
        """
        if not (self._is_ours and self.storage and self.study_name and self.trial_id is not None):
            return super().read_hyperparameters()
        trial_id, self.trial_id = self.trial_id, None  # the zoo would take 0 for none
        try:
            hyperparams, _ = super().read_hyperparameters()
        finally:
            self.trial_id = trial_id
        if isinstance(hyperparams.get("policy_kwargs"), str):
            hyperparams["policy_kwargs"] = eval(hyperparams["policy_kwargs"], vars(zoo_module))  # as the zoo does
        drawn = into_block(hyperparams, self.load_trial(self.storage, self.study_name, trial_id))
        # What -params says goes first; its policy_kwargs are in the block already, as in the trial
        custom = {name: value for name, value in (self.custom_hyperparams or {}).items() if name != "policy_kwargs"}
        hyperparams = {**hyperparams, **drawn, **custom}
        saved = OrderedDict(sorted(hyperparams.items()))
        print(f"With those of trial {trial_id} of {self.study_name}:")
        pprint(saved)
        return hyperparams, saved

    def objective(self, trial: optuna.Trial) -> float:
        """
        Train and evaluate with hyperparameters that Optuna draws.

        :param trial: Optuna's trial
        :return: Mean return
        :raises TrialPruned: If it stopped early; also when gradients were refused, as the zoo does for other numerical errors
        """
        if self._is_ours:
            trial.block = self._hyperparams  # type: ignore[attr-defined]
        try:
            return super().objective(trial)
        except FloatingPointError as error:
            print(error)
            raise optuna.TrialPruned() from error
