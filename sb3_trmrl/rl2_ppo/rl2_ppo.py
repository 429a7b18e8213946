"""RL2: PPO with a recurrent memory over the trial (Duan et al. 2016, Wang et al. 2016)."""

from typing import ClassVar, TypeVar

from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_trmrl.common.on_policy_algorithm import MemoryPPO
from sb3_trmrl.rl2_ppo.policies import RL2Policy

SelfRL2PPO = TypeVar("SelfRL2PPO", bound="RL2PPO")


class RL2PPO(MemoryPPO):
    """
    RL2: "fast reinforcement learning via slow reinforcement learning". A recurrent network sees the tokens
    ``[obs, prev_action, prev_reward, prev_done]`` of a trial; its hidden state is zeroed when a trial starts and kept over its
    episodes; PPO meta-trains it on whole trials.

    Papers: https://arxiv.org/abs/1611.02779, https://arxiv.org/abs/1611.05763. Two published settings:
    ``hyperparams/rl2_paper.yml``. Its header says what differs from them.

    Parameters as for :class:`~sb3_trmrl.common.on_policy_algorithm.MemoryPPO`, ``policy`` is ``"RL2Policy"`` or a subclass of
    it. On a plain environment it is PPO with recurrent memory, trained on whole episodes.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"RL2Policy": RL2Policy}

    def learn(
        self: SelfRL2PPO,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "RL2PPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfRL2PPO:
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
