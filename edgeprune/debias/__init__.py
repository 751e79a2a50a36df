"""Bias curves, padding masks and the selection: numpy is the law that every back end is held to."""
