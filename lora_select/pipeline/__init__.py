"""The line: from rows to a judged adapter. Every command is a prefix of it."""
