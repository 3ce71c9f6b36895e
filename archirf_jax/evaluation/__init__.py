"""How good images are: features, and what two sets of them have in common."""
