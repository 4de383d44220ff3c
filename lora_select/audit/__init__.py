"""Who had what in production and why: seals over files, a hash-chained ledger, approval, rollback, verification, clean-up."""
