"""The terminal: words, escapes, progress, signals."""
