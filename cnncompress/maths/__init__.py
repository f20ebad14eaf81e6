"""Linear algebra and clustering on tensors."""
