"""Flows: composition only. Importing the package sets the quiet, offline defaults before Prefect is imported."""

from flows.environment import prepare

prepare()
