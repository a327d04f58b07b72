"""Looking at a model and its objective rather than training it."""
