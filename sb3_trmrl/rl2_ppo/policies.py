"""Policies of RL2PPO."""

from typing import Any

from sb3_trmrl.common.policies import MemoryActorCriticPolicy
from sb3_trmrl.memory_encoders import MemoryEncoder


class RL2Policy(MemoryActorCriticPolicy):
    """
    Actor-critic policy with a recurrent memory of the trial.

    :param args: As for :class:`~sb3_trmrl.common.policies.MemoryActorCriticPolicy`
    :param memory_encoder: ``"gru"``, ``"lstm"`` or any other encoder
    :param kwargs: As for :class:`~sb3_trmrl.common.policies.MemoryActorCriticPolicy`
    """

    def __init__(self, *args: Any, memory_encoder: str | type[MemoryEncoder] = "gru", **kwargs: Any):
        super().__init__(*args, **{**kwargs, "memory_encoder": memory_encoder})
