"""What trains models with hfopt: configurations become runs, runs become comparisons. `__main__.py` opens the doors.

Eight rooms; a room imports only from those above it, and `benchmarks` and `examples` need nothing of training:

    settings/    YAML files and the command line, checked
    problems/    data sets and models
    training/    optimizers, batches, and the loop
    runs/        one run, what it leaves on disk, and what a person sees of it
    suite/       many runs: comparisons, tuning, sweeps
    laboratory/  the curvature of models
    benchmarks/  what hfopt costs
    examples/    hfopt in loops of another kind
"""

import os

# Bases of eigenvectors are LAPACK's work. Its threads wait busily, and beside XLA's own on few cores a factorisation of
# a millisecond then takes a hundred. They are counted when NumPy and SciPy are first imported, so this comes before.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
