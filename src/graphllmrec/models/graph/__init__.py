"""Models of the click graph, from clicks alone or with item text."""
