"""Comparisons: a bundle with the model it was made from, and back ends with one another."""
