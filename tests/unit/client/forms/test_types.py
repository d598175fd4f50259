"""What a type checker reports in a host's code: right fields pass, and wrong ones are errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from regworker.domain.job import Job
from tests.integration.guide import blocks
from tests.integration.installation import PATIENCE, ROOT

#: A host's module. Each wrong line ends with the kind of its error.
HOST = """
import asyncio
from datetime import UTC, datetime

from regworker import AsyncProducer, Job, Producer, Receipt
from regworker import Open2bAddress, Open2bCustomer, Open2bRegistration
from regworker import SkyPostalAddress, SkyPostalPhone, SkyPostalRegistration
from regworker.outbox import Outbox, Relay
from regworker.testing import AsyncFakeProducer, FakeProducer

address = SkyPostalAddress(
    city_code=1, locality_town="a", neighborhood="b", address_01="c", zip_code="d"
)
phone = SkyPostalPhone(phone_area_code="+1", phone_number="2", phone_type=1)
sky = SkyPostalRegistration(
    language_code="ENG",
    customer_first_name="a",
    customer_last_name="b",
    customer_identity_number="c",
    customer_birth_date="1990-01-01",
    customer_email="a@example.com",
    customer_password="s3cret",
    customer_gender="F",
    customer_address=[address],
    customer_phone=[phone, phone],
)
customer = Open2bCustomer(
    address=Open2bAddress(email="a@example.com"), privacyConsents=[12], password="s3cret"
)
open2b = Open2bRegistration(customer=customer)
least = Job(provider="open2b", idempotency_key="k", registration=open2b)
text: str = sky.customer_email + open2b.customer.address.email + least.idempotency_key
most = Job(
    provider="skypostal",
    account="default",
    idempotency_key="k",
    registration=sky,
    reply_to=["results"],
    lane="bulk",
    if_exists="adopt",
    deadline=datetime.now(UTC),
    metadata={"order": "A-17", "lines": [1, 2]},
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)
Job(provider="acme", idempotency_key="k", registration={"any": "thing"}, deadline="2099-01-01")


def sign_up(producer: Producer) -> Receipt:
    producer.enqueue({"provider": "open2b", "registration": open2b})
    return producer.enqueue(least)


async def sign_up_later(producer: AsyncProducer) -> Receipt:
    return await producer.enqueue(most)


def test(fake: FakeProducer, other: AsyncFakeProducer) -> Relay:
    sign_up(fake)
    asyncio.run(sign_up_later(other))
    Outbox(fake.settings).statement(fake.jobs[0])
    sign_up(other)  # arg-type
    return Relay(fake)


address.city_code = "1"  # assignment
SkyPostalAddress(city_code=1)  # call-arg
SkyPostalPhone(phone_area_code="+1", phone_number="2")  # call-arg
SkyPostalPhone(phone_area_code="+1", phone_number="2", phone_type=1, phone_typ=1)  # call-arg
Open2bAddress()  # call-arg
Open2bCustomer(address=address, privacyConsents=[12], password="s3cret")  # arg-type
Open2bCustomer(address=open2b.customer.address, privacyConsents="12", password="p")  # arg-type
Open2bRegistration(customer=customer, verificationcode="1")  # call-arg
Job(provider="open2b", registration=open2b)  # call-arg
Job(provider="open2b", idempotency_key="k", registration="{}")  # arg-type
Job(provider="open2b", idempotency_key="k", registration=open2b, lane="fast")  # arg-type
Job(provider="open2b", idempotency_key="k", registration=open2b, colour="red")  # call-arg
sky.customer_emial  # attr-defined
sky.customer_password = 5  # assignment
"""


def errors(folder: Path, *files: str) -> str:
    """What mypy says of the files of a host, by the `mypy.ini` of their folder."""
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--no-error-summary", "--hide-error-context", *files],
        cwd=folder,
        env={**os.environ, "MYPY_CACHE_DIR": str(folder / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(PATIENCE * 3)
@pytest.mark.parametrize("plugin", ["", "pydantic.mypy"])
def test_wrong_fields_and_types_are_errors(plugin: str, tmp_path: Path) -> None:
    """mypy in strict mode reports them, with pydantic's plugin and without."""
    host = tmp_path / "host.py"
    host.write_text(HOST)
    (tmp_path / "mypy.ini").write_text(f"[mypy]\nstrict = true\nplugins = {plugin}\n")
    found = errors(tmp_path, "host.py")
    said = {
        (int(line), kind)
        for line, kind in re.findall(r"^host\.py:(\d+): error: .*\[([a-z-]+)\]$", found, re.M)
    }
    wanted = {
        (number, kind[1])
        for number, line in enumerate(HOST.splitlines(), 1)
        if (kind := re.search(r"  # ([a-z-]+)$", line))
    }
    assert said == wanted, found


def test_each_field_of_a_job_can_be_given() -> None:
    """The hand-written signature of the constructor has every field."""
    most = re.search(r"^most = Job\((.*?)^\)", HOST, re.M | re.S)
    assert most is not None
    assert set(re.findall(r"^    (\w+)=", most[1], re.M)) == set(Job.model_fields)


#: Pages with Python that a host copies.
PAGES = ["cookbook", *(f"guide/{one}" for one in ("idempotency", "integrate", "jobs"))]
PAGES += ["guide/outbox", "guide/results", "guide/testing"]

#: What is not ours: other packages' types, and a page's second function of one name.
OTHERS = ("attr-defined", "import-untyped", "no-any-return", "no-redef", "no-untyped-call")
OTHERS += ("untyped-decorator",)

#: The form on a page that shows what is wrong with it.
MEANT = 'error: Missing named argument "privacyConsents"'


@pytest.mark.timeout(PATIENCE * 3)
def test_what_a_host_copies_from_a_page_passes(tmp_path: Path) -> None:
    """mypy in strict mode finds no wrong use of this package."""
    (tmp_path / "mypy.ini").write_text(
        f"[mypy]\nstrict = true\ndisable_error_code = {', '.join(OTHERS)}\n"
    )
    names = []
    for page in (ROOT / "docs" / f"{name}.md" for name in PAGES):
        python = [one for one in blocks(page) if one.language == "python"]
        for one in python:
            if one.file:
                (tmp_path / one.file).write_text(one.text, "utf-8")
        loose = "\n\n".join(one.text for one in python if not one.file)
        assert loose
        names.append(f"page_{page.stem}.py")
        (tmp_path / names[-1]).write_text(loose, "utf-8")
    found = [line for line in errors(tmp_path, *names).splitlines() if ": error: " in line]
    assert [line for line in found if MEANT not in line] == []
    assert len(found) == 1, "the wrong form is found"
