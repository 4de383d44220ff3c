"""The report: one page of a run, with its figures."""
