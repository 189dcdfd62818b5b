"""Settings of every test run."""

import os

from hypothesis import settings

# The models here are tiny: a second compute thread costs more than it gives, and much more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Kernels for GPUs run here through an interpreter; it must be asked for before triton is imported.
os.environ.setdefault("TRITON_INTERPRET", "1")

# How long an example takes says more of what else the machine does than of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")
