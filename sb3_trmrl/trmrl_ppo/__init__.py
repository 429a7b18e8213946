from sb3_trmrl.trmrl_ppo.policies import TrMRLPolicy
from sb3_trmrl.trmrl_ppo.trmrl_ppo import TrMRLPPO

__all__ = ["TrMRLPPO", "TrMRLPolicy"]
