from sb3_trmrl.rl2_ppo.policies import RL2Policy
from sb3_trmrl.rl2_ppo.rl2_ppo import RL2PPO

__all__ = ["RL2PPO", "RL2Policy"]
