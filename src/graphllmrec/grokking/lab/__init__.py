"""The grokking lab: small trainings that generalise late, or do not, and what detectors make of them."""
