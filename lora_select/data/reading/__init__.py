"""From what a user names to canonical rows: files, formats, turns."""
