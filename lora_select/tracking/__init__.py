"""MLflow and the report: the only package that imports mlflow."""
