"""How fast a bundle is beside other programs that run the same weights on this CPU, and beside its limits."""
