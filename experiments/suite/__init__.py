"""Many runs together: comparisons with tuned baselines and their page, sweeps and their tables, and the pool."""
