"""PostgreSQL by its own binaries, on loopback, with passwords; as another user where this one is root."""

import os
import pwd
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from services.home import DATABASES, Home, StackError

FOLDERS = ("/usr/lib/postgresql",)
SUPERUSER = "postgres"


def binaries() -> Path:
    """The folder of `initdb` and the rest: on PATH, else the newest of Debian's.

    Raises:
        StackError: PostgreSQL is not installed.
    """
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent  # what is on PATH may be a link, beside which the rest is not
    versions = [path for folder in FOLDERS for path in Path(folder).glob("*/bin") if (path / "initdb").exists()]
    if not versions:
        raise StackError("PostgreSQL's server is not installed (initdb was not found): apt install postgresql")
    return max(versions, key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0)


def start(home: Home) -> None:
    """Make the cluster and its databases when they are missing, and start it; nothing happens when it runs.

    Raises:
        StackError: it does not come up; the sentence names the log.
    """
    data = home.root / "postgres"
    if not (data / "PG_VERSION").exists():
        _initialise(home, data)
    if not running(home):
        options = f"-h 127.0.0.1 -p {home.port('postgres')} -c unix_socket_directories="
        log = data / "server.log"
        done = _as_server(["pg_ctl", "-D", str(data), "-l", str(log), "-o", options, "-w", "-t", "60", "start"])
        if done.returncode:
            raise StackError(f"PostgreSQL did not start; see {log}: {done.stdout[-300:]}")
    pid = int((data / "postmaster.pid").read_text().splitlines()[0])
    home.note("processes", "postgres", {"pid": pid, "started": psutil.Process(pid).create_time()})
    _write_pgpass(home)
    for name in DATABASES:
        _database(home, name)


def stop(home: Home) -> None:
    """Stop it; connections are ended, transactions rolled back."""
    data = home.root / "postgres"
    if (data / "postmaster.pid").exists():
        _as_server(["pg_ctl", "-D", str(data), "-m", "fast", "-w", "-t", "60", "stop"])
    home.note("processes", "postgres", None)


def running(home: Home) -> bool:
    """Whether it takes connections."""
    command = ["pg_isready", "-q", "-h", "127.0.0.1", "-p", str(home.port("postgres"))]
    return subprocess.run([str(binaries() / command[0]), *command[1:]], check=False).returncode == 0


def environment(home: Home) -> dict[str, str]:
    """What lets a client in: the password file, which libpq and asyncpg both read."""
    return {**os.environ, "PGPASSFILE": str(home.root / "secrets" / "pgpass")}


def client(home: Home, program: str, *arguments: str, database: str | None = None) -> str:
    """Run `psql`, `pg_dump` or `pg_restore` as the superuser and return what it printed.

    Raises:
        StackError: it failed.
    """
    place = ["-h", "127.0.0.1", "-p", str(home.port("postgres")), "-U", SUPERUSER, "-w"]
    command = [str(binaries() / program), *place, *(["-d", database] if database else []), *arguments]
    done = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        raise StackError(f"{program} failed: {done.stderr.strip()[-400:]}")
    return done.stdout


def tables(home: Home, database: str) -> int:
    """How many tables a database has."""
    query = "select count(*) from information_schema.tables where table_schema = 'public'"
    return int(client(home, "psql", "-Atc", query, database=database))


def _initialise(home: Home, data: Path) -> None:
    _reachable(home.root)
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(mode=0o700)
    owner = _owner()
    if owner:
        os.chown(data, owner.pw_uid, owner.pw_gid)
    # A file of the other user's, outside the folder of secrets, which that user may not open; gone a moment later.
    descriptor, password = tempfile.mkstemp(dir=home.root)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(home.secret("postgres_password"))
    try:
        if owner:
            os.chown(password, owner.pw_uid, owner.pw_gid)
        command = ["initdb", "-D", str(data), "-U", SUPERUSER, "--auth=scram-sha-256", f"--pwfile={password}"]
        done = _as_server([*command, "-E", "UTF8", "--locale=C", "--data-checksums"])
    finally:
        Path(password).unlink()
    if done.returncode:
        shutil.rmtree(data, ignore_errors=True)
        raise StackError(f"initdb failed: {done.stdout[-400:]}")


def _database(home: Home, name: str) -> None:
    password = home.secret(f"{name}_password")
    have = client(home, "psql", "-Atc", f"select 1 from pg_database where datname = '{name}'", database="postgres")
    if have.strip():
        return
    script = home.write_secret(
        "create.sql", f"create role {name} login password '{password.replace(chr(39), chr(39) * 2)}'"
    )
    try:
        role = client(home, "psql", "-Atc", f"select 1 from pg_roles where rolname = '{name}'", database="postgres")
        if not role.strip():
            client(home, "psql", "-q", "-v", "ON_ERROR_STOP=1", "-f", str(script), database="postgres")
    finally:
        script.unlink()
    client(home, "psql", "-qc", f"create database {name} owner {name}", database="postgres")
    # Each role sees its own database alone; Prefect's migrations want this extension, which only the superuser may make.
    client(home, "psql", "-qc", f"revoke connect on database {name} from public", database="postgres")
    if name == "prefect":
        client(home, "psql", "-qc", "create extension if not exists pg_trgm", database=name)


def _write_pgpass(home: Home) -> None:
    port = home.port("postgres")
    users = {SUPERUSER: home.secret("postgres_password")} | {
        name: home.secret(f"{name}_password") for name in DATABASES
    }
    escaped = {user: re.sub(r"([\\:])", r"\\\1", password) for user, password in users.items()}
    lines = [f"127.0.0.1:{port}:*:{user}:{password}" for user, password in escaped.items()]
    home.write_secret("pgpass", "\n".join(lines))


def _owner() -> pwd.struct_passwd | None:
    """Who runs the server: this user, or `postgres` (else `nobody`) where this user is root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StackError("PostgreSQL does not run as root, and there is no user `postgres` or `nobody` to run it as")


def _as_server(command: list[str]) -> subprocess.CompletedProcess[str]:
    owner = _owner()
    who = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
    # pg_ctl hands its output on to the server: a pipe would stay open as long as that runs.
    with tempfile.TemporaryFile("w+") as out:
        done = subprocess.run(
            [str(binaries() / command[0]), *command[1:]],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, text=True, check=False, cwd="/", **who,
        )  # fmt: skip
        out.seek(0)
        return subprocess.CompletedProcess(command, done.returncode, out.read(), "")


def _reachable(root: Path) -> None:
    if not _owner():
        return
    closed = [path for path in root.resolve().parents if not path.stat().st_mode & 0o001]
    if closed:
        raise StackError(
            f"PostgreSQL runs as `{_owner().pw_name}` because this user is root, and {closed[0]} lets nobody else through; "
            "choose another --home or run as a user of your own"
        )


def wait(home: Home, seconds: float = 60.0) -> None:
    """Until it takes connections.

    Raises:
        StackError: it does not in time.
    """
    until = time.monotonic() + seconds
    while not running(home):
        if time.monotonic() > until:
            raise StackError("PostgreSQL does not take connections")
        time.sleep(0.2)
