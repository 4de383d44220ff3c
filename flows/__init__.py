"""Flows: composition only."""
