"""What holds between Optax and the transformations of this package."""
