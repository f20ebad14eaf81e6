"""What holds for all tests, and for the processes that they start.

One thread a process: many small operations run faster so, above all where several workers share the cores. No bytecode
beside imported files, as tests look at what is in a folder.
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
sys.dont_write_bytecode = True
