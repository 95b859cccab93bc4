"""Models that run in this very process."""
