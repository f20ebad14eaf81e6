"""`python -m cnncompress`, for torchrun."""

from cnncompress.cli import main

main()
