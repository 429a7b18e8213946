"""Saving and loading models as data: the methods of the algorithms. The work is done in :mod:`sb3_trmrl.hub`."""

import multiprocessing
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback

from sb3_trmrl.common.evaluation import derived_seed

if TYPE_CHECKING:
    from sb3_trmrl.common.on_policy_algorithm import MemoryPPO

SelfPretrained = TypeVar("SelfPretrained", bound="MemoryPPO")


def command_line() -> str | None:
    """
    :return: The command that runs this process, as typed in a shell; None in an interactive session and in a process that
        ``multiprocessing`` started, whose command nobody typed.
    """
    if multiprocessing.parent_process() is not None:
        return None
    # An interpreter's path tells about a machine, not about the training
    arguments = ["python", *sys.orig_argv[1:]]
    is_script = len(arguments) > 1 and sys.argv[0] not in ("", "-c", "-")
    return shlex.join(arguments) if is_script else None


class PretrainedMixin(BaseAlgorithm):
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` for the algorithms of this package (docs/guide/hub.md)."""

    in_step: bool = False
    """Whether the environments are a step ahead of the model, as they are when a callback's ``on_step`` is called."""
    pending_training_state: dict[str, Any] | None = None
    """What a loaded model still has to resume: state of environments and random generators, put in place by ``learn``. Empty,
    if only weights were saved."""
    saved_environment: dict[str, Any] | None = None
    """How the environment of a loaded model was made."""
    saved_normalized: bool = False
    """Whether a loaded model was trained behind ``VecNormalize(norm_obs=True)``."""
    train_command: str | None = None
    """The command that trained the model."""

    def save_pretrained(self: "MemoryPPO", folder: str | Path, training_state: bool = True) -> Path:  # type: ignore[misc]
        """
        Save the model as data, in ``config.json`` and safetensors files, none of which can run code. The folder is replaced
        as a whole: whenever the process is killed, it loads.

        :param folder: Where to; made if it is not there. It must hold nothing but a saved model
        :param training_state: Whether training is to resume from it exactly: optimizers, random generators, running trials.
            Call it between rollouts for that: after ``learn``, or in a callback's ``on_rollout_start``
        :return: The folder
        :raises PretrainedError: for what can't be written as data (a function as schedule, an unregistered class), and if
            the folder holds other files
        """
        from sb3_trmrl.hub.pretrained import save_pretrained

        return save_pretrained(self, folder, training_state)

    @classmethod
    def from_pretrained(  # type: ignore[misc]
        cls: type[SelfPretrained],
        folder_or_repo_id: str | Path,
        revision: str | None = None,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        **hub_kwargs: Any,
    ) -> SelfPretrained:
        """
        Load a model that ``save_pretrained`` or ``push_to_hub`` wrote. Nothing in it is run, whoever wrote it.

        ``learn(n, reset_num_timesteps=False)`` then goes on exactly where it was saved; plain ``learn(n)`` starts a new
        training from its weights. If ``env`` is not given, they make the environment that is described in the file.

        :param folder_or_repo_id: Folder, or ``"owner/name"`` of a model on the Hugging Face Hub
        :param revision: Branch, tag or commit on the Hub
        :param env: Environment to go on training in
        :param device: Device (cpu, cuda, ...) on which the code should be run
        :param hub_kwargs: For the download: ``token``, ``cache_dir``, ``local_files_only``, ``endpoint``, ... (see
            ``huggingface_hub.snapshot_download``)
        :return: The model
        :raises PretrainedError: if the files are not those of such a model, see :mod:`sb3_trmrl.hub.errors`
        """
        from sb3_trmrl.hub.pretrained import load

        return cast(SelfPretrained, load(folder_or_repo_id, revision, env, device, algorithm=cls, **hub_kwargs))

    def push_to_hub(self: "MemoryPPO", repo_id: str, **kwargs: Any) -> str:  # type: ignore[misc]
        """
        Publish the model with a model card on the Hugging Face Hub.

        :param repo_id: ``"owner/name"``; made if it is not there
        :param kwargs: See :func:`sb3_trmrl.hub.publish.push_to_hub`
        :return: Address of the commit
        """
        from sb3_trmrl.hub.publish import push_to_hub

        return push_to_hub(self, repo_id, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "in_step", "pending_training_state", "saved_environment", "saved_normalized"]

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        state = self.pending_training_state
        self.train_command = command_line() or self.train_command
        env_is_given = self.env is not None
        if self.env is None and self.saved_environment is not None:
            from sb3_trmrl.hub.description import make_environment

            self.set_env(make_environment(self.saved_environment, self.observation_space, self.action_space))
        if state is None:
            return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        from sb3_trmrl.hub.training_state import restore_environment, restore_rng

        resumes = bool(state) and not reset_num_timesteps
        if not resumes:
            # As at the construction of a model: loading leaves the random numbers of the process alone
            seed = self.seed
            if seed is not None and self.num_timesteps > 0 and not reset_num_timesteps:
                seed = derived_seed(seed, self.num_timesteps)  # not the training's first trials again
            self.set_random_seed(seed)
        else:
            restore_environment(cast("MemoryPPO", self), state, env_is_given)
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if resumes:
            restore_rng(cast("MemoryPPO", self), state)
        self.pending_training_state = None  # only now: where a callback has failed, learn can be called again
        return result
