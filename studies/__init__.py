"""Studies that are done: each made the figures of a document once. See README.md."""
