"""The memory of RL2: a gated recurrent network."""

import itertools

import torch as th
from torch import nn

from sb3_trmrl.common.arguments import check_integers
from sb3_trmrl.memory_encoders.base import MemoryEncoder, MemoryState


class RecurrentEncoder(MemoryEncoder):
    """
    RL2's memory (Duan et al. 2016, arXiv 1611.02779; Wang et al. 2016, arXiv 1611.05763): tokens, optionally through a
    multilayer perceptron, into a recurrent network whose hidden state is the feature. Subclasses choose the network.

    State: per network state (hidden, and cell for LSTM) the layers' values, (n_envs, n_layers, hidden_size).

    A hidden state depends on everything since the memory was emptied. When a rollout starts in mid-trial, it is computed
    again under the current weights from the last ``context_length`` tokens (from an empty memory, if the trial is longer).

    :param token_dim: Width of the tokens
    :param hidden_size: Width of the hidden state and of the features
    :param n_layers: Number of recurrent layers
    :param embedding: Hidden sizes of the perceptron (tanh) in front; none by default
    :param context_length: How many tokens before a rollout its start may be re-encoded from, at least 0
    :param truncation: Through how many steps gradients flow back (truncated backpropagation through time); through the
        whole trial if None
    :raises ValueError: for sizes that are no integers of at least 1 (``context_length``: 0)
    """

    network_class: type[nn.GRU] | type[nn.LSTM]

    def __init__(
        self,
        token_dim: int,
        hidden_size: int = 128,
        n_layers: int = 1,
        embedding: list[int] | None = None,
        context_length: int = 1024,
        truncation: int | None = None,
    ):
        sizes = {f"embedding[{i}]": size for i, size in enumerate(embedding or [])}
        sizes.update(hidden_size=hidden_size, n_layers=n_layers, truncation=1 if truncation is None else truncation)
        check_integers(sizes)
        check_integers(dict(context_length=context_length), least=0)
        super().__init__(token_dim, features_dim=hidden_size, context_length=context_length)
        self.n_layers, self.truncation = n_layers, truncation
        layers: list[nn.Module] = []
        width = token_dim
        for size in embedding or []:
            layers += [nn.Linear(width, size), nn.Tanh()]
            width = size
        self.embedding = nn.Sequential(*layers)
        self.network = self.network_class(width, hidden_size, n_layers, batch_first=True)
        for name, parameter in self.network.named_parameters():
            if "weight" in name:
                # One orthogonal matrix per gate
                for gate in parameter.chunk(parameter.shape[0] // hidden_size):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.zeros_(parameter)

    def initial_state(self, n_envs: int) -> MemoryState:
        zeros = self._anchor.new_zeros(n_envs, self.n_layers, self.features_dim)
        return (zeros, zeros.clone()) if isinstance(self.network, nn.LSTM) else (zeros,)

    def _run(self, tokens: th.Tensor, state: MemoryState) -> tuple[th.Tensor, MemoryState]:
        # torch keeps (n_layers, batch, hidden_size), we (batch, n_layers, hidden_size)
        hidden = tuple(part.transpose(0, 1).contiguous() for part in state)
        embedded = self.embedding(tokens)
        if isinstance(self.network, nn.LSTM):
            features, hidden = self.network(embedded, (hidden[0], hidden[1]))
        else:
            features, last = self.network(embedded, hidden[0])
            hidden = (last,)
        return features, tuple(part.transpose(0, 1) for part in hidden)

    def step(self, tokens: th.Tensor, state: MemoryState, memory_starts: th.Tensor) -> tuple[th.Tensor, MemoryState]:
        state = tuple(part.masked_fill(memory_starts[:, None, None], 0.0) for part in state)
        features, state = self._run(tokens.unsqueeze(1), state)
        return features.squeeze(1), state

    def forward(self, tokens: th.Tensor, offsets: th.Tensor) -> th.Tensor:
        state, features = self.initial_state(len(tokens)), []
        for chunk in tokens.split(self.truncation or tokens.shape[1], dim=1):
            chunk_features, state = self._run(chunk, tuple(part.detach() for part in state))
            features.append(chunk_features)
        return th.cat(features, dim=1)

    def state_from_context(self, tokens: th.Tensor, lengths: th.Tensor) -> MemoryState:
        n_envs, context, _ = tokens.shape
        reach = lengths.clamp(max=context)
        state = self.initial_state(n_envs)
        if not reach.any():
            return state
        # From the start of one memory to that of the next, all that have begun run together
        for start, end in itertools.pairwise(sorted({0, *reach.tolist()}, reverse=True)):
            rows = reach >= start
            _, parts = self._run(tokens[rows, context - start : context - end], tuple(part[rows] for part in state))
            for part, new in zip(state, parts, strict=True):
                part[rows] = new
        return state


class GRUEncoder(RecurrentEncoder):
    __doc__ = RecurrentEncoder.__doc__
    network_class = nn.GRU


class LSTMEncoder(RecurrentEncoder):
    __doc__ = RecurrentEncoder.__doc__
    network_class = nn.LSTM
