"""Retention: adapters of several tasks and kinds, filtered in every way, judged on rows and text that chose nothing."""
