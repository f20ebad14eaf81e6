"""The quadratic forms that errors are measured in."""
