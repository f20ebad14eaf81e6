"""The names of networks, methods, metrics and data sets, found without importing torch."""
