"""Files: published whole or not at all, and opened safely."""
