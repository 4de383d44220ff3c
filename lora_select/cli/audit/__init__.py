"""Commands about what was registered, decided and kept: the ledger, approval, rollback, verification, cleaning."""
