"""Runs the suite on the CPU unless JAX_PLATFORMS says otherwise.

This must happen before jax is imported. That `tests` is a package puts the repository's root on
sys.path.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
