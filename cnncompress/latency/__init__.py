"""How long networks, layers and chains take on this machine."""
