"""All figures, drawn with matplotlib as SVG for HTML pages: one look for evaluations, trainings, and the lab."""
