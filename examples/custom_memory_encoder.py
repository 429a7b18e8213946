"""
A memory encoder of your own: write the class, register it under a name, check it, train with it.

This one keeps exponential moving averages of embedded tokens, each channel with a learned rate of forgetting. For a bandit
that is about what it takes: how often an arm was pulled, and how often it paid, are averages of what the tokens tell.

Run: python examples/custom_memory_encoder.py
"""

import argparse
import time

import torch as th
from torch import nn

from sb3_trmrl import TrMRLPPO, register_memory_encoder
from sb3_trmrl.common.env_util import make_meta_vec_env
from sb3_trmrl.common.evaluation import adaptation_table, evaluate_adaptation
from sb3_trmrl.memory_encoders import MemoryEncoder, MemoryState

# Five arms, each pays with a probability of its own, uniform in [0, 1]: playing at random makes 5.0 of 10, the best arm 8.3
ENV_ID = "MetaBandit-v0"


class MovingAverageEncoder(MemoryEncoder):
    """
    ``memory[t] = decay * memory[t - 1] + (1 - decay) * embedding(token[t])``, starting from zeros; the features are the
    memory, normalised. State: the memory, (n_envs, width).

    :param token_dim: Width of the tokens
    :param width: Width of the memory, which is what the heads see
    :param longest: Longest half-life at the start, in tokens; the channels start between 1 and this
    :param context_length: How many tokens are remembered anew when a rollout starts in mid-trial; all are, in trials of no
        more steps than this
    """

    def __init__(self, token_dim: int, width: int = 64, longest: float = 100.0, context_length: int = 500):
        super().__init__(token_dim, features_dim=width, context_length=context_length)
        self.embedding = nn.Sequential(nn.Linear(token_dim, width), nn.ReLU(), nn.Linear(width, width))
        self.norm = nn.LayerNorm(width)
        half_lives = longest ** th.linspace(0.0, 1.0, width)
        self.decay_logit = nn.Parameter(th.special.logit(0.5 ** (1.0 / half_lives)))

    def initial_state(self, n_envs: int) -> MemoryState:
        # Made on the device of the weights
        return (self.decay_logit.new_zeros(n_envs, self.features_dim),)

    def step(self, tokens: th.Tensor, state: MemoryState, memory_starts: th.Tensor) -> tuple[th.Tensor, MemoryState]:
        (memory,) = state
        decay = th.sigmoid(self.decay_logit)
        memory = memory.masked_fill(memory_starts.unsqueeze(1), 0.0)
        memory = decay * memory + (1 - decay) * self.embedding(tokens)
        return self.norm(memory), (memory,)

    def forward(self, tokens: th.Tensor, offsets: th.Tensor) -> th.Tensor:
        # All steps at once, in log2(seq_len) rounds: if memory[t] holds the last n tokens, then together with what
        # memory[t - n] holds they are 2 n. (`offsets`, the time at which a sequence starts, does not matter here.)
        decay = th.sigmoid(self.decay_logit)
        memory = (1 - decay) * self.embedding(tokens)
        n = 1
        while n < tokens.shape[1]:
            earlier = nn.functional.pad(memory, (0, 0, n, 0))[:, : tokens.shape[1]]
            memory = memory + decay**n * earlier
            n *= 2
        return self.norm(memory)


@th.no_grad()
def check(encoder: MemoryEncoder) -> None:
    """
    Acting goes through ``step`` and training through ``forward``: they must be one function.

    :param encoder: The encoder
    :raises AssertionError: if they are not
    """
    n_envs, seq_len = 4, 50
    tokens = th.randn(n_envs, seq_len, encoder.token_dim)
    whole = encoder(tokens, offsets=th.zeros(n_envs, dtype=th.int64))
    # What was in memory before the start must not matter
    _, state = encoder.step(th.randn(n_envs, encoder.token_dim), encoder.initial_state(n_envs), th.ones(n_envs, dtype=th.bool))
    for t in range(seq_len):
        features, state = encoder.step(tokens[:, t], state, memory_starts=th.full((n_envs,), t == 0))
        th.testing.assert_close(features, whole[:, t], atol=1e-5, rtol=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train with a memory encoder of your own.")
    parser.add_argument("--timesteps", type=int, default=200_000, help="steps of meta-training")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    # The matrices are too small to be shared between threads
    th.set_num_threads(1)
    # Whoever loads a model with this memory must have registered it first
    register_memory_encoder("moving_average", MovingAverageEncoder)
    check(MovingAverageEncoder(token_dim=8))
    print("Step by step and whole sequences agree.")

    # 32 tasks at a time, 5 episodes of 10 pulls on each, a new task for every trial
    env = make_meta_vec_env(ENV_ID, n_envs=32, seed=args.seed, env_kwargs=dict(episodes_per_trial=5))
    model = TrMRLPPO(
        "TrMRLPolicy",
        env,
        learning_rate=1e-3,
        n_steps=50,
        batch_size=400,
        n_epochs=10,
        gamma=0.95,
        gae_lambda=0.95,
        target_kl=0.1,
        seed=args.seed,
        device="cpu",
        policy_kwargs=dict(memory_encoder="moving_average", memory_encoder_kwargs=dict(width=64)),
    )
    print(f"Meta-training on {ENV_ID} for {args.timesteps:,} steps ...")
    start = time.perf_counter()
    model.learn(args.timesteps, progress_bar=True)
    print(f"Trained in {time.perf_counter() - start:.0f} s. Testing on 300 unseen tasks, 6 episodes each, weights frozen ...")

    agent = evaluate_adaptation(model, ENV_ID, n_tasks=300, n_episodes=6, split="test", seed=args.seed)
    print("\nReturn per episode on unseen tasks, mean and 95 % bootstrap interval")
    print(adaptation_table({"moving average": agent}))
    gain = agent.returns[:, -1] - agent.returns[:, 0]
    print(f"\nLast episode minus first: {gain.mean():+.2f} on average, better on {(gain > 0).mean():.0%} of the tasks")
    memory = model.policy.actor_memory
    assert isinstance(memory, MovingAverageEncoder)
    decay = th.sigmoid(memory.decay_logit.detach())
    half_lives = th.log(th.tensor(0.5)) / th.log(decay)
    print(f"Half-lives of the channels: {half_lives.min():.1f} to {half_lives.max():.0f} tokens")


if __name__ == "__main__":
    main()
