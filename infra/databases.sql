-- One database each: MLflow, its users and Prefect all use Alembic's default version table.
create database mlflow;
create database mlflow_auth;
create database prefect;
\connect prefect
create extension if not exists pg_trgm;
