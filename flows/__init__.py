"""Flows: composition only. Importing the package sets the quiet, offline defaults before Prefect is imported."""

from lora_select.environment import prepare

prepare()
