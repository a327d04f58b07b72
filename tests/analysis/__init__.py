"""Tests of `hfopt.analysis`."""
