"""The runtime: what a device runs. Needs neither torch nor transformers."""
