"""The options of `celery -A worker worker`: those that fit this worker; it refuses all others.

Celery takes each of its options also from the environment (`CELERY_WORKER_QUEUES`, ...). Here these
variables have no effect, like `CELERY_BROKER_URL`: they belong to a surrounding service.
"""

from collections.abc import Mapping
from typing import Any

import click
from click.core import ParameterSource

from regworker.settings import ONE_POOL, variable

#: Options of `celery worker` that do here what they do elsewhere, or have no effect that anybody
#: would miss.
FITTING = frozenset(
    {
        *("hostname", "loglevel", "concurrency", "task_events", "pidfile", "uid", "gid", "umask"),
        *("include", "prefetch_multiplier", "optimization", "heartbeat_interval"),
        *("without_gossip", "without_mingle", "without_heartbeat", "allow_unsafe", "help"),
    }
)

#: Options of `celery` itself, before `worker`.
FITTING_BEFORE = frozenset({"app", "workdir", "no_color", "quiet", "skip_checks", "help"})

_LANES = "each worker takes the work of all lanes, the urgent one first"
_SUPERVISOR = "start it with a supervisor or an orchestrator (docs/operations.md)"
_LIMIT = f"{variable('call_budget')} limits each call"

#: What to do instead.
INSTEAD: Mapping[str, str] = {
    "autoscale": f"it has a fixed number of slots: set {variable('concurrency')}",
    "pool": ONE_POOL,
    "queues": _LANES,
    "exclude_queues": _LANES,
    "purge": "it would delete requests that were accepted",
    "detach": _SUPERVISOR,
    "executable": _SUPERVISOR,
    "logfile": "log lines go to standard error: redirect it",
    "time_limit": _LIMIT,
    "soft_time_limit": _LIMIT,
    "beat": "it runs no schedule of Celery's: start `celery beat` with an app of your own",
    "broker": f"set {variable('broker_url')}",
    "config": "it reads `celeryconfig.py` in its working directory",
}

_OTHERWISE = "it has no effect on this worker, or would lose work"


class Guard(click.Option):
    """An option that is looked at before all others, and refuses those that do not fit."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, is_eager=True, **kwargs)

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Look at what was given; then take this option's own value."""
        names = {one.name: one.opts[-1] for one in ctx.command.params}
        refused = [(names[name], name) for name in opts if name not in FITTING]
        if (before := ctx.parent) is not None:
            refused += [
                (one.opts[-1], str(one.name))
                for one in before.command.params
                if one.name not in FITTING_BEFORE
                and before.get_parameter_source(str(one.name)) is ParameterSource.COMMANDLINE
            ]
        lines = [f"  {option}: {INSTEAD.get(name, _OTHERWISE)}" for option, name in refused]
        if args:
            lines.append(f"  {args[0]}: Celery's settings are set in `celeryconfig.py`")
        if lines:
            raise SystemExit("registration-worker cannot start:\n" + "\n".join(lines))
        ctx.auto_envvar_prefix = None
        return super().handle_parse_result(ctx, opts, args)
