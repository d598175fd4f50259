"""Ways by which events leave, other than in the ledger's own script: one file each."""
