"""What can be trained on: data sets, one file a family, and the models for them."""
