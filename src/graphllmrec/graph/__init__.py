"""The user–item graph and propagation over it."""
