"""`regworker acl`: the permissions of each role."""

import shlex
from dataclasses import asdict
from typing import Annotated

import typer

from worker.cli.numbers import MOST
from worker.cli.output import AsJson, print_json, print_line


def acl(
    role: Annotated[
        list[str] | None, typer.Argument(metavar="[ROLE]...", help="Only these roles.")
    ] = None,
    db: Annotated[
        int, typer.Option(min=0, max=MOST, help="The number of the broker's database.")
    ] = 0,
    rabbitmq: Annotated[
        bool,
        typer.Option(
            "--rabbitmq", help="Print permissions for RabbitMQ, as arguments of rabbitmqctl."
        ),
    ] = False,
    vhost: Annotated[str, typer.Option(help="With --rabbitmq: the virtual host.")] = "/",
    stream: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="A results stream, instead of {reg}:results; may be repeated."
        ),
    ] = None,
    json: AsJson = False,
) -> None:
    """Print the permissions that each role needs, one line per role, for Redis or Valkey.

    Replace `><password>` by a password, or by its SHA-256 as `#<hex>`. Add by hand the queues that
    results go to (`KIND=queue`). If results go to other streams than `{reg}:results`, name with
    --stream all that producers and gateways may write when they cancel a job, and those that a
    reader may read.

    Redis before 7.2 refuses a line with `+client|setinfo`: leave that word out there.

    With --rabbitmq it prints arguments of `rabbitmqctl` for a broker that is RabbitMQ: configure,
    write and read, as regular expressions.

    Examples:
        regworker acl
        regworker acl producer results-reader
        regworker acl producer --stream '{reg}:results' --stream crm-results
        regworker acl --rabbitmq --vhost registrations
    """
    from regworker.results import RESULTS
    from worker.operations.roles import AMQP_ROLES, ROLES

    names = {one.name for one in (AMQP_ROLES if rabbitmq else ROLES)}
    for name in role or ():
        if name not in names:
            raise typer.BadParameter(f"no role {name}; there are: {', '.join(sorted(names))}")
    if rabbitmq:
        for other in AMQP_ROLES:
            if role and other.name not in role:
                continue
            if json:
                print_json({"role": other.name, **asdict(other), "vhost": vhost})
            else:
                print_line(f"rabbitmqctl {shlex.join(other.command(vhost))}")
        return
    streams = stream or [RESULTS]
    for one in ROLES:
        if role and one.name not in role:
            continue
        if json:
            print_json({"role": one.name, "summary": one.summary, "rules": one.rules(db, streams)})
        else:
            reset, on, *rest = one.rules(db, streams)
            print_line(f"ACL SETUSER {one.name} {' '.join([reset, on, '><password>', *rest])}")
