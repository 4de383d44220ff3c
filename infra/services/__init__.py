"""The parts of `infra/stack.py`: home, PostgreSQL, servers, backup."""
