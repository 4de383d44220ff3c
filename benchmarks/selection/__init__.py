"""The oracle: real trainings of every candidate on several tasks, and what each way of choosing would have lost."""
