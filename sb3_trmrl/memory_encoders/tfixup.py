"""The paper's memory: a causal transformer without LayerNorm, made trainable by T-Fixup initialisation."""

import math
from typing import Literal

import torch as th
from torch import nn

from sb3_trmrl.memory_encoders.attention import TransformerLayer
from sb3_trmrl.memory_encoders.base import WindowMemoryEncoder
from sb3_trmrl.memory_encoders.positional_encoding import sinusoidal_encoding


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
    TrMRL's memory (Melo, ICML 2022, section 4): every window of the last W tokens is encoded on its own by a causal
    transformer with fixed sinusoidal positions (index = slot); the output at the current token is the feature.

    :param token_dim: Width of the tokens
    :param embed_dim: Width d of the transformer and of the features
    :param n_heads: Number of attention heads; must divide ``embed_dim``
    :param n_layers: Number N of layers
    :param ff_dim: Width of the feed-forward networks; ``4 * embed_dim`` if None
    :param memory_length: Window W, number of tokens in working memory
    :param initialization: ``"trmrl"``: T-Fixup as in the TrMRL author's code; ``"tfixup"``: as in the T-Fixup paper (query
        and key not scaled); ``"xavier"``: no T-Fixup, Xavier-uniform matrices and zero biases (for ablations)
    :param scale_embedding: Multiply the embedding by sqrt(d) at run time, as the T-Fixup paper does and TrMRL does not
    :raises ValueError: for sizes that do not fit and for an unknown ``initialization``
    """

    def __init__(
        self,
        token_dim: int,
        embed_dim: int = 128,
        n_heads: int = 4,
        n_layers: int = 2,
        ff_dim: int | None = None,
        memory_length: int = 5,
        initialization: Literal["trmrl", "tfixup", "xavier"] = "trmrl",
        scale_embedding: bool = False,
    ):
        ff_dim = 4 * embed_dim if ff_dim is None else ff_dim
        for name, size in dict(
            embed_dim=embed_dim, n_heads=n_heads, n_layers=n_layers, ff_dim=ff_dim, memory_length=memory_length
        ).items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {size!r}.")
        super().__init__(token_dim, features_dim=embed_dim, memory_length=memory_length)
        if initialization not in ("trmrl", "tfixup", "xavier"):
            raise ValueError(f"initialization must be 'trmrl', 'tfixup' or 'xavier', got {initialization!r}.")
        self.embedding_scale = math.sqrt(embed_dim) if scale_embedding else 1.0
        # No bias (author's code); the positions have one already
        self.embedding = nn.Linear(token_dim, embed_dim, bias=False)
        self.layers = nn.ModuleList(TransformerLayer(embed_dim, n_heads, ff_dim) for _ in range(n_layers))
        self.positions: th.Tensor
        self.register_buffer("positions", sinusoidal_encoding(memory_length, embed_dim), persistent=False)

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

    def encode_windows(self, windows: th.Tensor, lengths: th.Tensor) -> th.Tensor:
        # (batch, memory_length, token_dim) -> (batch, memory_length, embed_dim)
        x = self.embedding_scale * self.embedding(windows) + self.positions
        *first_layers, last_layer = self.layers
        assert isinstance(last_layer, TransformerLayer)
        for layer in first_layers:
            x = layer(x)
        # Only the current token's output is read, so the last layer computes no other
        return last_layer.forward_at(x, lengths - 1)
