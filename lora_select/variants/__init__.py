"""The explicit tuple of adapter variants."""
