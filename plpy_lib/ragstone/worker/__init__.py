"""From claimed jobs to stored chunks."""
