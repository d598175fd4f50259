"""Both providers on this machine: documented answers, scripted faults, and records of what they
did.

`python -m sandbox` runs it; tests use `sandbox.server.SandboxServer`. Behaviour that the providers
do not document is marked "invented" in the code. Never imports `worker`.
"""
