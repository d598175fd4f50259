"""How events are sent, except in the ledger's own scripts: one file each."""
