"""What is written of a run and shows an edit: the hash-chained ledger, seals over files, the ledger's head in MLflow."""
