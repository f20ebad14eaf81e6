"""What networks and methods may be called, found without importing torch."""
