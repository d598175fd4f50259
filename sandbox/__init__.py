"""Both providers on this machine: faithful answers, scripted faults, and a ledger of what they did.

`python -m sandbox` runs it; tests use `sandbox.server.SandboxServer`. What the providers do not
document is marked "invented" where it is decided. Never imports `worker`.
"""
