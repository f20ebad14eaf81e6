"""Facts about any torch network: layers, calls, cost, answers, swaps."""
