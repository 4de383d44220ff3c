"""How the line of the library runs under Prefect: a stage is a task, and Prefect's pages are told."""
