"""One thread a process: many small operations run faster so, above all where several workers share the cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
