"""What is trained and how the sweep is run: tasks, base models, candidates, the order of runs, the table of results."""
