"""What several commands share."""

DEFAULT_TRACKING = "sqlite:///mlflow.db"
"""Where MLflow is when nothing else is said."""
