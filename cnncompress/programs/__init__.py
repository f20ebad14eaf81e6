"""Networks as programs of `torch.export`, which run without the Python code that they were built by."""

from cnncompress.programs.network import Program, read_program
from cnncompress.programs.writing import write_program

__all__ = ["Program", "read_program", "write_program"]
