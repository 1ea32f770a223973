"""Fusion of a graph branch and a text branch: gates that can be read."""
