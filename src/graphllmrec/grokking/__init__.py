"""Detect late generalisation in training curves, and schedule a gate by it."""
