"""What is true of any torch network."""
