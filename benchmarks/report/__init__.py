"""Output of a run: tables, pages, comparisons, and committed results."""
