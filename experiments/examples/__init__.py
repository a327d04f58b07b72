"""hfopt in loops of another kind than that of `training`: reinforcement learning, and linen beside NNX."""
