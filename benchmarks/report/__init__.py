"""What a run shows: tables, pages, comparisons, and committed results."""
