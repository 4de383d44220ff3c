"""From records to a decision: pure functions."""
