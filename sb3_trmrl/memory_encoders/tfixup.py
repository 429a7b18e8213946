"""The paper's memory, a causal transformer without LayerNorm made trainable by T-Fixup, over a window or over the trial."""

import math
from typing import Literal

import torch as th
from torch import nn

from sb3_trmrl.common.arguments import check_choice, check_flags, check_integers
from sb3_trmrl.memory_encoders.attention import TransformerLayer, check_heads, n_cache_slots, newest_in_slots, next_slots
from sb3_trmrl.memory_encoders.base import MemoryState, WindowMemoryEncoder, oldest_first
from sb3_trmrl.memory_encoders.positional_encoding import Rotation, rotation_at, sinusoidal_encoding


@th.no_grad()
def tfixup_(layers: nn.ModuleList, n_layers: int, scale_query_key: bool = True) -> None:
    """
    T-Fixup initialisation of transformer layers, in place (Huang et al., ICML 2020, section 3.2, encoder).

    Value, output and both feed-forward matrices: Xavier-uniform times ``0.67 N^(-1/4)``. For query and key:

    - ``scale_query_key=True``, the TrMRL author's code: Xavier-uniform, scaled like the others; attention biases zero,
      feed-forward biases as PyTorch makes them,
    - ``scale_query_key=False``, the T-Fixup paper and its fairseq code: Xavier-uniform with gain 1/sqrt(2), not scaled;
      all biases zero.

    :param layers: The transformer layers
    :param n_layers: Number N of layers that the scale is computed for
    :param scale_query_key: Which of the two variants
    """
    scale = 0.67 * n_layers**-0.25
    for layer in layers:
        assert isinstance(layer, TransformerLayer)
        attention = layer.attention
        query, key, value = attention.in_proj.weight.chunk(3)
        for matrix in (query, key):
            nn.init.xavier_uniform_(matrix, gain=scale if scale_query_key else 1 / math.sqrt(2))
        for matrix in (value, attention.out_proj.weight, layer.feed_forward_1.weight, layer.feed_forward_2.weight):
            nn.init.xavier_uniform_(matrix, gain=scale)
        nn.init.zeros_(attention.in_proj.bias)
        nn.init.zeros_(attention.out_proj.bias)
        if not scale_query_key:
            nn.init.zeros_(layer.feed_forward_1.bias)
            nn.init.zeros_(layer.feed_forward_2.bias)


class TFixupTransformerEncoder(WindowMemoryEncoder):
    """
    TrMRL's memory (Melo, ICML 2022, section 4): a causal transformer over tokens, its output at the current token is the
    feature. It attends over

    - ``attention="window"``, the paper: every window of the last W tokens is encoded on its own, with positions by slot,
    - ``attention="trial"``: everything since the memory was emptied. In each layer a token attends to the last
      ``memory_length`` tokens, itself included; in a longer trial the band slides, so that ``n_layers`` layers reach back
      ``n_layers * (memory_length - 1)`` tokens. Acting keeps keys and values of each layer in a ring of up to
      ``memory_length`` slots per environment; training encodes a slice of a trial in one pass.

    State for ``"trial"``: the cache, (n_envs, n_layers, 2 (keys, values), n_heads, n_slots, head_dim), and the number of
    tokens since the memory was emptied, int64 (n_envs,).

    :param token_dim: Width of the tokens
    :param attention: ``"window"`` or ``"trial"``
    :param embed_dim: Width d of the transformer and of the features
    :param n_heads: Number of attention heads; must divide ``embed_dim``
    :param n_layers: Number N of layers
    :param ff_dim: Width of the feed-forward networks; ``4 * embed_dim`` if None
    :param memory_length: Number of tokens that a token attends to, itself included; 5 (the paper) for ``"window"``, 1024 for
        ``"trial"`` if None
    :param positions: ``"rotary"``: queries and keys turn with time since the memory was emptied (Su et al. 2021);
        ``"sinusoidal"``: fixed sinusoids of that time are added to the tokens; ``"learned"``: one learned vector per slot is
        added, used again after ``memory_length`` tokens. By default sinusoidal for ``"window"`` (the paper; by slot), which
        also takes ``"learned"``, rotary for ``"trial"``
    :param normalization: ``"none"`` or ``"pre"``: LayerNorm on the input of attention and feed-forward networks and on the
        features
    :param initialization: ``"trmrl"``: T-Fixup as in the TrMRL author's code; ``"tfixup"``: as in the T-Fixup paper (query
        and key not scaled); ``"xavier"``: no T-Fixup, Xavier-uniform matrices and zero biases (for ablations)
    :param scale_embedding: Multiply the embedding by sqrt(d) at run time, as the T-Fixup paper does and TrMRL does not
    :raises ValueError: for sizes that do not fit and for an unknown option
    """

    def __init__(
        self,
        token_dim: int,
        attention: Literal["window", "trial"] = "trial",
        embed_dim: int = 128,
        n_heads: int = 4,
        n_layers: int = 2,
        ff_dim: int | None = None,
        memory_length: int | None = None,
        positions: Literal["rotary", "sinusoidal", "learned"] | None = None,
        normalization: Literal["none", "pre"] = "none",
        initialization: Literal["trmrl", "tfixup", "xavier"] = "trmrl",
        scale_embedding: bool = False,
    ):
        if memory_length is None:
            memory_length = 5 if attention == "window" else 1024
        if positions is None:
            positions = "sinusoidal" if attention == "window" else "rotary"
        ff_dim = 4 * embed_dim if ff_dim is None else ff_dim
        check_integers(
            dict(embed_dim=embed_dim, n_heads=n_heads, n_layers=n_layers, ff_dim=ff_dim, memory_length=memory_length)
        )
        check_choice("attention", attention, ("window", "trial"))
        check_choice("positions", positions, ("rotary", "sinusoidal", "learned"))
        check_choice("normalization", normalization, ("none", "pre"))
        check_choice("initialization", initialization, ("trmrl", "tfixup", "xavier"))
        check_flags(dict(scale_embedding=scale_embedding))
        check_heads(embed_dim, n_heads)
        super().__init__(token_dim, features_dim=embed_dim, memory_length=memory_length)
        self.n_heads, self.head_dim = n_heads, embed_dim // n_heads
        if positions == "rotary":
            if attention == "window":
                raise ValueError(
                    "positions='rotary' needs attention='trial': the windows of attention='window' are encoded one by one, "
                    "with positions 'sinusoidal' or 'learned' by slot."
                )
            if self.head_dim % 2 != 0:
                raise ValueError(
                    "positions='rotary' turns pairs of channels, so embed_dim / n_heads must be even, got "
                    f"embed_dim={embed_dim} and n_heads={n_heads}."
                )
        self.attention, self.positions = attention, positions
        if attention == "trial":
            self.training_unit = "sequence"
            self.context_length = n_layers * (memory_length - 1)
        self.embedding_scale = math.sqrt(embed_dim) if scale_embedding else 1.0
        # No bias (author's code); the positions have one already
        self.embedding = nn.Linear(token_dim, embed_dim, bias=False)
        self.layers = nn.ModuleList(
            TransformerLayer(embed_dim, n_heads, ff_dim, pre_norm=normalization == "pre") for _ in range(n_layers)
        )
        self.final_norm = nn.LayerNorm(embed_dim) if normalization == "pre" else nn.Identity()
        if positions == "learned":
            self.learned_positions = nn.Parameter(0.02 * th.randn(memory_length, embed_dim))

        if initialization == "xavier":
            for module in self.layers.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)
            nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5)
        else:
            tfixup_(self.layers, n_layers, scale_query_key=initialization == "trmrl")
            # N(0, d^-1/2), then times (9 N)^(-1/4) (Huang et al. 2020, section 3.2)
            nn.init.normal_(self.embedding.weight, std=embed_dim**-0.5 * (9 * n_layers) ** -0.25)

    def _embed(self, tokens: th.Tensor, positions: th.Tensor) -> th.Tensor:
        # tokens (..., token_dim), positions (...) -> (..., embed_dim)
        x = self.embedding_scale * self.embedding(tokens)
        if self.positions == "sinusoidal":
            return x + sinusoidal_encoding(positions, self.features_dim)
        return x + self.learned_positions[positions % self.memory_length] if self.positions == "learned" else x

    def _rotation(self, positions: th.Tensor) -> Rotation | None:
        return rotation_at(positions, self.head_dim) if self.positions == "rotary" else None

    def _transformer_layers(self) -> list[TransformerLayer]:
        return [layer for layer in self.layers if isinstance(layer, TransformerLayer)]

    # -- Window ------------------------------------------------------------------------------------------------------

    def encode_windows(self, windows: th.Tensor, lengths: th.Tensor) -> th.Tensor:
        # (batch, memory_length, token_dim) -> (batch, memory_length, embed_dim)
        x = self._embed(windows, th.arange(self.memory_length, device=windows.device))
        *first_layers, last_layer = self._transformer_layers()
        for layer in first_layers:
            x = layer(x)
        # Only the current token's output is read, so the last layer computes no other
        return self.final_norm(last_layer.forward_at(x, lengths - 1))

    # -- Trial -------------------------------------------------------------------------------------------------------

    def initial_state(self, n_envs: int) -> MemoryState:
        if self.attention == "window":
            return super().initial_state(n_envs)
        return self._empty_cache(n_envs, n_cache_slots(0, self.memory_length)), self._anchor.new_zeros(n_envs, dtype=th.int64)

    def _empty_cache(self, n_envs: int, n_slots: int) -> th.Tensor:
        return self._anchor.new_zeros(n_envs, len(self.layers), 2, self.n_heads, n_slots, self.head_dim)

    def state_from_context(self, tokens: th.Tensor, lengths: th.Tensor) -> MemoryState:
        if self.attention == "window":
            return super().state_from_context(tokens, lengths)
        n_envs, context, _ = tokens.shape
        reach = lengths.clamp(max=context)
        if not reach.any():
            return self.initial_state(n_envs)[0], lengths.clone()
        tokens = oldest_first(tokens, reach)
        positions = (lengths - reach).unsqueeze(1) + th.arange(tokens.shape[1], device=tokens.device)
        cache = self._empty_cache(n_envs, n_cache_slots(int(lengths.max()), self.memory_length))
        # Column 0 holds the token at position lengths - reach
        columns = (newest_in_slots(lengths, cache.shape[4]) - (lengths - reach).unsqueeze(1)).clamp(min=0)
        columns = columns[:, None, :, None].expand(-1, self.n_heads, -1, self.head_dim)
        x, rotation = self._embed(tokens, positions), self._rotation(positions)
        for index, layer in enumerate(self._transformer_layers()):
            x, keys, values = layer.encode(x, self.memory_length, rotation)
            cache[:, index, 0], cache[:, index, 1] = keys.gather(2, columns), values.gather(2, columns)
        return cache, lengths.clone()

    @th.no_grad()
    def step(self, tokens: th.Tensor, state: MemoryState, memory_starts: th.Tensor) -> tuple[th.Tensor, MemoryState]:
        if self.attention == "window":
            return super().step(tokens, state, memory_starts)
        cache, lengths = state
        cache, positions, slots, used = next_slots(cache, lengths, memory_starts, self.memory_length)
        visible = (th.arange(used, device=tokens.device) <= positions.unsqueeze(1))[:, None, None, :]
        x, rotation = self._embed(tokens, positions), self._rotation(positions.unsqueeze(1))
        for layer, entries in zip(self._transformer_layers(), cache[..., :used, :].unbind(dim=1), strict=True):
            x = layer.step(x, entries[:, 0], entries[:, 1], slots, visible, rotation)
        return self.final_norm(x), (cache, positions + 1)

    def forward(self, tokens: th.Tensor, offsets: th.Tensor) -> th.Tensor:
        if self.attention == "window":
            return super().forward(tokens, offsets)
        positions = offsets.unsqueeze(1) + th.arange(tokens.shape[1], device=tokens.device)
        x, rotation = self._embed(tokens, positions), self._rotation(positions)
        for layer in self._transformer_layers():
            x = layer(x, self.memory_length, rotation)
        return self.final_norm(x)
