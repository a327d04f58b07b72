"""Helpers for Flax: `hfopt.flax.linen` and `hfopt.flax.nnx`."""
