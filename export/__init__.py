"""The exporter: from a Hugging Face vision-language model to a bundle. Needs `edgeprune[export]`.

Importing the package loads none of what the exporter needs.
"""
