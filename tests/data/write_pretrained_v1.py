"""
Wrote ``pretrained_v1/`` and ``pretrained_v1_acts.json``, with the version in its ``config.json``. Do not run it again: these
files stand for all that users have saved, and every later version must load them. A new format gets new files.
"""

import json
from pathlib import Path
from typing import Any

import torch as th

from sb3_trmrl import TrMRLPPO
from sb3_trmrl.common.env_util import make_meta_vec_env

FOLDER = Path(__file__).parent


def main() -> None:
    th.set_num_threads(1)
    env = make_meta_vec_env("PointRobot-v0", n_envs=2, seed=0, env_kwargs=dict(episodes_per_trial=2, horizon=7))
    model = TrMRLPPO(
        "TrMRLPolicy",
        env,
        learning_rate=1e-2,
        n_steps=30,
        batch_size=30,
        n_epochs=2,
        seed=0,
        device="cpu",
        policy_kwargs=dict(net_arch=[8], memory_encoder_kwargs=dict(embed_dim=8, n_heads=2, n_layers=1, ff_dim=8)),
    )
    model.learn(300)
    model.train_command = "python write_pretrained_v1.py"
    model.save_pretrained(FOLDER / "pretrained_v1")
    trial, state = env.envs[0], None  # type: ignore[attr-defined]
    token, _ = trial.reset(seed=1)
    known: dict[str, Any] = {"num_timesteps": model.num_timesteps, "tokens": [], "actions": []}
    for _ in range(14):
        action, state = model.predict(token, state, deterministic=True)
        known["tokens"].append(token.tolist())
        known["actions"].append(action.tolist())
        token = trial.step(action)[0]
    (FOLDER / "pretrained_v1_acts.json").write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
