"""Reading datasets, counting them, and turning rows into tokens."""
