"""Settings of every test run."""

import os

# The models here are tiny: a second compute thread costs more than it gives, and much more on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
