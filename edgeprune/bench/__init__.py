"""How fast a bundle is, beside itself unpruned and without debias, and beside the FLOPs bound."""
