"""Policies of TrMRLPPO."""

from sb3_trmrl.common.policies import MemoryActorCriticPolicy

TrMRLPolicy = MemoryActorCriticPolicy
