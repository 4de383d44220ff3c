"""The stages of the line, one module a group: each is a name, a record type and a function."""
