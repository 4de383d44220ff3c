"""The process that starts ranks, watches them and takes up what was interrupted."""
