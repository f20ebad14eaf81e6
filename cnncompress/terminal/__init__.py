"""What is said on the terminal: words, escapes, progress, signals."""
