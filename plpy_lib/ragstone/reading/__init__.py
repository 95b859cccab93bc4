"""From what was extracted to passages."""
