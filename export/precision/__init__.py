"""Weights of fewer bits: what quantised checkpoints hold, and the one form that graphs have of it."""
