"""The curvature of models, looked at: the report of a trained one, and when the approximations of it agree."""
