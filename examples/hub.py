"""
Publish an agent on the Hugging Face Hub and load it again, without pickle; resume a training that was killed.

    python examples/hub.py                        # trains, saves and loads in ./hub_example
    python examples/hub.py --repo-id you/agent    # and publishes it, after `hf auth login`

Everything is JSON and safetensors: whoever loads the model runs no code of it (docs/guide/hub.md).
"""

import argparse
from pathlib import Path

import numpy as np
import torch as th

import sb3_trmrl
from sb3_trmrl import TrMRLPPO
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.evaluation import adaptation_table
from sb3_trmrl.hub import PretrainedCheckpointCallback, latest_checkpoint

ENV_ID = "PointRobot-v0"


def main() -> None:
    parser = argparse.ArgumentParser(description="Save, load, publish, resume.")
    parser.add_argument("--timesteps", type=int, default=100_000, help="steps of meta-training")
    parser.add_argument("--output", type=Path, default=Path("hub_example"), help="folder for checkpoints and model")
    parser.add_argument("--repo-id", help="owner/name on the Hub; nothing is published without it")
    args = parser.parse_args()
    th.set_num_threads(1)

    # Run it again after Ctrl-C or kill -9: it goes on from the last checkpoint, as if nothing had happened
    checkpoints = args.output / "checkpoints"
    callback = PretrainedCheckpointCallback(max(args.timesteps // 5, 1), checkpoints, keep_last=2, verbose=1)
    checkpoint = latest_checkpoint(checkpoints)
    if checkpoint is None:
        env = make_meta_vec_env(ENV_ID, n_envs=16, seed=0, env_kwargs=dict(episodes_per_trial=3))
        encoder = dict(embed_dim=32, n_heads=4, n_layers=1)
        model = TrMRLPPO(
            "TrMRLPolicy",
            env,
            learning_rate=1e-3,
            n_steps=120,
            batch_size=480,
            gamma=0.9,
            gae_lambda=0.9,
            target_kl=0.1,
            seed=0,
            device="cpu",
            policy_kwargs=dict(log_std_init=-0.5, memory_encoder_kwargs=encoder),
        )
    else:
        model = TrMRLPPO.from_pretrained(checkpoint, device="cpu")
        print(f"Goes on from {checkpoint}")
    left = args.timesteps - model.num_timesteps
    if left > 0:
        model.learn(left, callback=callback, reset_num_timesteps=False)

    folder = model.save_pretrained(args.output / "model")
    print(f"Saved {', '.join(sorted(path.name for path in folder.iterdir()))} to {folder}")
    loaded = sb3_trmrl.load(folder, device="cpu")
    token = np.zeros(6, np.float32)
    assert np.array_equal(model.predict(token, deterministic=True)[0], loaded.predict(token, deterministic=True)[0])
    result = sb3_trmrl.evaluate_adaptation(loaded, ENV_ID, n_tasks=50, n_episodes=3)
    print(adaptation_table({"loaded": result}))

    if args.repo_id is not None:
        print(f"Published: {loaded.push_to_hub(args.repo_id, adaptation=result)}")
        print(f'Anyone can now write: sb3_trmrl.load("{args.repo_id}")')


if __name__ == "__main__":
    main()
