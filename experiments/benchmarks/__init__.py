"""`python -m experiments bench …`: what hfopt costs, and what its parts are worth; one file a benchmark.

Machines are shared and noisy, so no time stands alone: what is timed is the ratio of two programs of one process, which
take turns. What the compiler can count (arithmetic, memory, collectives) is read from compiled programs.
"""
