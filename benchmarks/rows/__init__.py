"""How many rows, and how long on them."""
