"""The idea: a layer becomes a chain of plain stages."""
