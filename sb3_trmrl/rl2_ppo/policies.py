"""Policies of RL2PPO."""

from typing import Any

from sb3_trmrl.common.policies import MemoryActorCriticPolicy
from sb3_trmrl.memory_encoders import MemoryEncoder


class RL2Policy(MemoryActorCriticPolicy):
    """
    Actor-critic policy with a recurrent memory of the trial.

    :param args: As for :class:`~sb3_trmrl.common.policies.MemoryActorCriticPolicy`
    :param memory_encoder: ``"gru"``, ``"lstm"`` or any other encoder
    :param kwargs: As for :class:`~sb3_trmrl.common.policies.MemoryActorCriticPolicy`, but for ``value_log_std_init``
    :raises ValueError: for ``value_log_std_init`` and as there
    """

    def __init__(self, *args: Any, memory_encoder: str | type[MemoryEncoder] = "gru", **kwargs: Any):
        if kwargs.get("value_log_std_init") is not None:
            raise ValueError(
                "value_log_std_init is the start of a Gaussian value likelihood that only the two_phase_update of TrMRLPPO "
                f"fits: leave it out (got {kwargs['value_log_std_init']!r})."
            )
        super().__init__(*args, **{**kwargs, "memory_encoder": memory_encoder})
