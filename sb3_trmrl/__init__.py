"""Meta-reinforcement learning with memory for Stable-Baselines3. Importing registers the environments, nothing else."""

from pathlib import Path

from sb3_trmrl.common.evaluation import AdaptationResult, evaluate_adaptation
from sb3_trmrl.common.metaworld_evaluation import evaluate_metaworld
from sb3_trmrl.envs.registration import register_envs
from sb3_trmrl.hub import load
from sb3_trmrl.memory_encoders import register_memory_encoder
from sb3_trmrl.rl2_ppo import RL2PPO, RL2Policy
from sb3_trmrl.trmrl_ppo import TrMRLPolicy, TrMRLPPO

__version__ = (Path(__file__).parent / "version.txt").read_text(encoding="utf-8").strip()

register_envs()


def hyperparams_dir() -> Path:
    """
    :return: The folder of RL Zoo configuration files that comes with the package: ``hyperparams/`` of the repository in an
        editable install, ``sb3_trmrl/hyperparams`` in the wheel
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "hyperparams", package.parent / "hyperparams"):
        if any(folder.glob("*.yml")):
            return folder
    raise FileNotFoundError(f"No hyperparams/*.yml in {package} or beside it: reinstall sb3_trmrl.")


__all__ = [
    "RL2PPO",
    "AdaptationResult",
    "RL2Policy",
    "TrMRLPPO",
    "TrMRLPolicy",
    "__version__",
    "evaluate_adaptation",
    "evaluate_metaworld",
    "hyperparams_dir",
    "load",
    "register_memory_encoder",
]
