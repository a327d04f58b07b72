"""A small decoder-only Transformer: what stands up to a position predicts what comes after it.

    x = E[symbol] + P[position];  x ← x + attention(norm(x)),  x ← x + MLP(norm(x)) in every layer;  z = W norm(x) + c

Attention is causal, with learned positions, layers are normalised before each part (pre-norm), and the MLP has one
hidden layer of four times the width with the GELU. No dropout: the loss is a function of parameters and data alone.

Sources: Vaswani et al., "Attention is all you need", 2017; Radford et al., "Language models are unsupervised multitask
learners", 2019 (pre-norm and a last norm, learned positions).
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

_WIDENING = 4  # of the hidden layers


class Transformer(nn.Module):
    """Numbers of symbols (n, length) -> logits (n, length, outputs).

    symbols: how many there are. length: of the longest sequence. width: of the stream, a multiple of heads.
    """

    symbols: int
    outputs: int
    length: int
    layers: int = 2
    width: int = 32
    heads: int = 2

    @nn.compact
    def __call__(self, symbols: jax.Array) -> jax.Array:
        positions = jnp.arange(symbols.shape[-1])
        x = nn.Embed(self.symbols, self.width, name="symbol")(symbols)
        x = x + nn.Embed(self.length, self.width, name="position")(positions)
        for _ in range(self.layers):
            x = x + CausalAttention(self.heads)(nn.LayerNorm()(x))
            hidden = nn.gelu(nn.Dense(_WIDENING * self.width)(nn.LayerNorm()(x)))
            x = x + nn.Dense(self.width)(hidden)
        return nn.Dense(self.outputs)(nn.LayerNorm()(x))


class CausalAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V over the positions up to each, in every head, then a dense layer; (n, length, width) both.

    Every kernel is a matrix, so that an optimizer of matrices need not know which axes belong together.
    """

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        parts = (nn.Dense(width, name=name)(x) for name in ("query", "key", "value"))
        query, key, value = (part.reshape(*x.shape[:-1], self.heads, -1) for part in parts)
        past = nn.make_causal_mask(x[..., 0])
        heads = nn.dot_product_attention(query, key, value, mask=past)
        return nn.Dense(width, name="out")(heads.reshape(x.shape))
