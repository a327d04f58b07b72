"""Tests of `hfopt.flax`."""
