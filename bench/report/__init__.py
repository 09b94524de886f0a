"""What is made from saved results: tables, Markdown, plots, performance targets, the README's numbers."""
