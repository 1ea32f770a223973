"""Models without gradient training: counts, neighbours, closed forms and filters."""
