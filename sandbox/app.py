"""The sandbox as one web app: both providers, its control, and (optionally) a webhook receiver."""

from starlette.applications import Starlette

from sandbox import control, open2b, skypostal
from sandbox.receiver import Receiver, receiver_routes
from sandbox.state import Sandbox


def create_app(sandbox: Sandbox | None = None, receiver: Receiver | None = None) -> Starlette:
    """Make the app. Serve it with `sandbox.server`, which can break connections."""
    sandbox = Sandbox() if sandbox is None else sandbox
    routes = [
        *skypostal.routes(sandbox),
        *open2b.routes(sandbox),
        *control.routes(sandbox),
    ]
    if receiver is not None:
        routes += receiver_routes(receiver)
    return Starlette(routes=routes)
