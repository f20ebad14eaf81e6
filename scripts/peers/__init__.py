"""Other tools, one file each: `variants(task)` gives the networks that a tool makes for one budget of MACs."""
