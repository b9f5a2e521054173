"""Compiled loops over plain arrays: the only package that imports numba.

Every kernel takes arrays and scalars, writes into arrays it is given, and holds no state. The plain NumPy twin
of each is in ``reference.py``. Kernels release the GIL and are called once for many mini-batches.
"""
