#!/bin/sh
# Read each secret from the file that Compose mounts into the variable that the server reads, then become the server.
set -eu
for name in POSTGRES_PASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY \
            MLFLOW_TRACKING_PASSWORD PREFECT_SERVER_API_AUTH_STRING PREFECT_API_AUTH_STRING; do
  eval "file=\${${name}_FILE:-}"
  if [ -n "$file" ]; then
    export "$name=$(cat "$file")"
  fi
done
if [ -n "${POSTGRES_PASSWORD:-}" ]; then
  # A password file that libpq and asyncpg both read: no URI and no command line holds a password.
  umask 077
  printf '*:*:*:*:%s\n' "$(printf %s "$POSTGRES_PASSWORD" | sed 's/[\\:]/\\&/g')" > /tmp/pgpass
  export PGPASSFILE=/tmp/pgpass
  unset POSTGRES_PASSWORD
fi
exec "$@"
