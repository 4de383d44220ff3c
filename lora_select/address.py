"""Addresses of stores: environment variables filled in, a driver that is installed, and passwords that are never shown."""

import importlib.util
import os
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from lora_select.errors import InputError

VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
PASSWORD = re.compile(r"(?<=://)([^\s/@:]*):([^\s@]+)@")
DRIVERS = {
    "postgresql": ("psycopg2", "psycopg", "pg8000"),
    "mysql": ("pymysql", "MySQLdb"),
    "mssql": ("pymssql", "pyodbc"),
}
"""Importable drivers of SQLAlchemy by kind of database, the lock's own first."""
NAMES = {"MySQLdb": "mysqldb"}
HIDDEN = "***"
DEFAULT_URI = "sqlite:///mlflow.db"


def default_uri() -> str:
    """Where MLflow is unless the config says: its own `MLFLOW_TRACKING_URI` where that is set, else a file in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def expanded(uri: str, environment: Mapping[str, str] | None = None) -> str:
    """The URI with every `${NAME}` replaced from the environment, so that a config need not hold a password.

    >>> expanded("postgresql://ann:${PG}@db/mlflow", {"PG": "x"})
    'postgresql://ann:x@db/mlflow'

    Raises:
        InputError: a variable is not set.
    """
    known = os.environ if environment is None else environment

    def value(match: re.Match[str]) -> str:
        if match[1] not in known:
            raise InputError(
                f"`tracking.uri` {masked(uri)} names the environment variable {match[1]}, which is not set; export it"
            )
        return known[match[1]]

    return VARIABLE.sub(value, uri)


def masked(uri: str) -> str:
    """The URI without a password; a variable in its place stays, because it is none.

    >>> masked("http://ann:s3cret@host:5000")
    'http://ann:***@host:5000'
    """
    return scrub(uri)


def scrub(text: str) -> str:
    """Any text with the passwords of all addresses in it hidden.

    >>> scrub("cannot open mysql://a:b@c/d?x=1")
    'cannot open mysql://a:***@c/d?x=1'
    """
    return PASSWORD.sub(lambda m: m[0] if VARIABLE.fullmatch(m[2]) else f"{m[1]}:{HIDDEN}@", text)


def holds_password(uri: str) -> bool:
    """Whether a password stands in the text itself (`${NAME}` is none)."""
    return scrub(uri) != uri or f":{HIDDEN}@" in uri


def without_login(uri: str) -> str:
    """The address without name and password, as a link for people.

    >>> without_login("https://ann:x@host:5000/a")
    'https://host:5000/a'
    """
    scheme, separator, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def with_driver(uri: str) -> str:
    """The URI with the name of a driver that is installed, where it names none: `postgresql://` alone asks SQLAlchemy for psycopg 3.

    Raises:
        InputError: no driver of this kind of database is installed.
    """
    scheme = urlsplit(uri).scheme
    if scheme not in DRIVERS:
        return uri
    found = next((name for name in DRIVERS[scheme] if importlib.util.find_spec(name)), None)
    if found is None:
        raise InputError(
            f"`tracking.uri` {masked(uri)} needs a driver; pip install {DRIVERS[scheme][0].replace('psycopg2', 'psycopg2-binary')}"
        )
    return f"{scheme}+{NAMES.get(found, found)}{uri[len(scheme) :]}"
