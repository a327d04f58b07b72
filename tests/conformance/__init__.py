"""Independent NumPy references, and the tests that hold hfopt to them.

The modules ending in ``_numpy`` import NumPy and nothing of JAX or hfopt: they form every matrix densely in float64.
"""
