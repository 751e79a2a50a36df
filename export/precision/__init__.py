"""Weights in fewer bits: which, how they are rounded, where they lie, and their form in the graph."""
