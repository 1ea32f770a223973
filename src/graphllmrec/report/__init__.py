"""Everything that presents results: HTML pages (Jinja2 templates, matplotlib figures), Markdown, terminal tables."""
