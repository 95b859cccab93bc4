"""The connection port: statements, and the calls that are made of them."""
