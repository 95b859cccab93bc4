"""Measurements of ragstone, each beside its reference from the same run. See README.md."""
