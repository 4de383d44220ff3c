"""One rank: the process that trains."""
