"""Checkpoints without pickle, which a killed training resumes from exactly."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, EventCallback

from sb3_trmrl.common.arguments import check_integers
from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.common.safe_write import replace_file
from sb3_trmrl.hub.pretrained import CONFIG, save_pretrained


def mean_training_return(model: BaseAlgorithm) -> float | None:
    """
    :param model: A model in training
    :return: SB3's ``rollout/ep_rew_mean``: mean return of the last trials; None if none has ended
    """
    returns = [info["r"] for info in model.ep_info_buffer or []]
    return float(np.mean(returns)) if returns else None


def latest_checkpoint(folder: str | Path, name_prefix: str = "checkpoint") -> Path | None:
    """
    :param folder: ``save_path`` of a :class:`PretrainedCheckpointCallback`
    :param name_prefix: Its ``name_prefix``
    :return: The checkpoint after the most steps, or None if there is none
    """
    checkpoints = _checkpoints(Path(folder), name_prefix)
    return checkpoints[-1] if checkpoints else None


def _checkpoints(folder: Path, name_prefix: str) -> list[Path]:
    pattern = re.compile(rf"{re.escape(name_prefix)}_\d+_steps")
    named = [path for path in (folder.iterdir() if folder.is_dir() else []) if pattern.fullmatch(path.name)]
    return sorted((path for path in named if (path / CONFIG).is_file()), key=_steps)


def _steps(checkpoint: Path) -> int:
    return int(checkpoint.name.split("_")[-2])


class PretrainedCheckpointCallback(BaseCallback):
    """
    Save folders of ``save_pretrained`` during training: ``checkpoint_<steps>_steps``, of which the last few are kept, and
    ``best``.

    It saves between two rollouts, at the first such moment after every ``save_freq`` steps: from there, training resumes bit
    for bit, running trials and random generators included. After a crash::

        model = TrMRLPPO.from_pretrained(latest_checkpoint("checkpoints"))
        model.learn(total_timesteps - model.num_timesteps, callback=..., reset_num_timesteps=False)

    :param save_freq: Save every so many steps of training (all environments together), at least 1
    :param save_path: Folder for the checkpoints; None is for RL Zoo, which takes ``checkpoints`` in the folder of the run
    :param keep_last: How many of them are kept, at least 1
    :param score: What is best: a function of the model; None says "not now". By default the mean return of the last
        training trials. For held-out tasks: ``lambda model: callback.results[-1].curve.mean() if callback.results else None``
        with a ``MetaEvalCallback``
    :param name_prefix: Start of the folders' names
    :param verbose: 1 tells of saving
    :raises ValueError: for a bad number; when training starts, without ``save_path``, and if the folder holds checkpoints of a
        training that is further, of which the new ones would be the outdated ones
    """

    model: MemoryPPO

    def __init__(
        self,
        save_freq: int,
        save_path: str | Path | None = None,
        keep_last: int = 3,
        score: Callable[[BaseAlgorithm], float | None] = mean_training_return,
        name_prefix: str = "checkpoint",
        verbose: int = 0,
    ):
        super().__init__(verbose)
        check_integers(dict(save_freq=save_freq, keep_last=keep_last))
        self.save_freq, self.keep_last, self.score, self.name_prefix = save_freq, keep_last, score, name_prefix
        self.save_path = None if save_path is None else Path(save_path)
        self.best_score = -np.inf
        self._saved_at = 0

    def _init_callback(self) -> None:
        if isinstance(self.parent, EventCallback):
            raise ValueError(
                f"PretrainedCheckpointCallback saves between rollouts, {type(self.parent).__name__} tells it of steps only: "
                "pass it to learn by itself, save_freq says how often."
            )
        if self.save_path is None:
            raise ValueError("PretrainedCheckpointCallback needs save_path, a folder for the checkpoints, outside of RL Zoo.")

    def _on_training_start(self) -> None:
        assert self.save_path is not None
        latest = latest_checkpoint(self.save_path, self.name_prefix)
        if latest is not None and _steps(latest) > self.model.num_timesteps:
            raise ValueError(
                f"save_path={str(self.save_path)!r} holds {latest.name}, this training is at {self.model.num_timesteps} "
                "steps: give it a folder of its own, move the checkpoints and best away, or go on from it: "
                f"from_pretrained({str(latest)!r}) and learn(..., reset_num_timesteps=False)."
            )
        # After a resumption: the next multiple of save_freq, and the best so far
        self._saved_at = self.model.num_timesteps
        if self.model.num_timesteps == 0:
            self.best_score = -np.inf
        record = self.save_path / "best.json"
        if self.model.num_timesteps > 0 and record.exists():
            try:
                best = json.loads(record.read_text(encoding="utf-8"))
                # What a training that is gone found later is no measure for this one
                if best["num_timesteps"] <= self.model.num_timesteps:
                    self.best_score = float(best["score"])
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{record} is no record of a best score, or it is broken ({error!r}): delete it.") from error

    def _on_rollout_start(self) -> None:
        self._save_if_due()

    def _on_training_end(self) -> None:
        self._save_if_due()

    def _on_step(self) -> bool:
        return True

    def _save_if_due(self) -> None:
        steps = self.model.num_timesteps
        if steps // self.save_freq == self._saved_at // self.save_freq:
            return
        self._saved_at = steps
        assert self.save_path is not None
        folder = save_pretrained(self.model, self.save_path / f"{self.name_prefix}_{steps}_steps")
        if self.verbose > 0:
            print(f"Saved {folder}")
        for outdated in _checkpoints(self.save_path, self.name_prefix)[: -self.keep_last]:
            shutil.rmtree(outdated)
        score = self.score(self.model)
        if score is not None and score > self.best_score:
            self.best_score = score = float(score)  # perhaps numpy's, which JSON does not know
            save_pretrained(self.model, self.save_path / "best")
            record = json.dumps({"score": score, "num_timesteps": steps}) + "\n"
            replace_file(self.save_path / "best.json", lambda partial: partial.write_text(record, encoding="utf-8"))
            if self.verbose > 0:
                print(f"New best, {score:.2f}: {self.save_path / 'best'}")
