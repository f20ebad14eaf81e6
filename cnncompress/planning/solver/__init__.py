"""The choice of a chain for each layer within a budget, as a knapsack."""
