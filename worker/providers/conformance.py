"""What every provider's class must do, as tests: run them for your own.

    from regworker.testing.provider import ProviderConformance, Reply

    class TestAcme(ProviderConformance):
        provider = Acme
        account = {"api_key": "key"}
        registration = {"email": "ada@example.com", "password": "secret-password"}
        registers = Reply(200, b'{"id": 7}')
        secrets = ("secret-password",)

pytest runs them with your other tests. The provider is called over real sockets, by the worker's
own transport, at a server that answers as each fault wants it.
"""

import asyncio
import html
import json
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import signature
from typing import Any, ClassVar
from unicodedata import normalize
from urllib.parse import quote

import pytest
from pydantic import BaseModel

from regworker.domain.outcome import (
    Outcome,
    Refused,
    Registered,
    Rejected,
    Retryable,
    Unknown,
)
from worker.providers.base import JobReference, Provider
from worker.providers.http import HttpTransport
from worker.providers.quoting import quotes

#: How servers spell what they quote.
SPELLINGS: Mapping[str, Callable[[str], str]] = {
    "as it is": str,
    "in upper case": str.upper,
    "HTML": html.escape,
    "HTML, all characters": lambda text: "".join(f"&#{ord(one)};" for one in text),
    "HTML in HTML": lambda text: html.escape(html.escape(text).replace("&#x27;", "&#39;")),
    "a URL": lambda text: quote(text, safe=""),
    "a URL, all characters": lambda text: "".join(f"%{one:02x}" for one in text.encode()),
    "JSON": lambda text: json.dumps(text)[1:-1],
    "JSON as PHP writes it": lambda text: json.dumps(text)[1:-1].replace("/", "\\/"),
    "JSON, all characters": lambda text: "".join(f"\\u{ord(one):04X}" for one in text),
    "JavaScript": lambda text: "".join(f"\\x{ord(one):02x}" for one in text),
    "SQL": lambda text: text.replace("'", "''"),
    "a shell": lambda text: text.replace("'", "'\\''"),
    "decomposed": lambda text: normalize("NFD", text),
    "without punctuation": lambda text: re.sub(r"\W", "", text),
    "in groups": lambda text: " ".join(text[at : at + 3] for at in range(0, len(text), 3)),
    "in another charset": lambda text: text.encode().decode("latin-1"),
}

#: Seconds for a call that gets no answer, and for all others.
SHORT, AMPLE = 0.5, 10.0

JOB = JobReference("job-1", "key-1")


@dataclass(frozen=True, slots=True)
class Reply:
    """A provider's answer."""

    status: int
    body: bytes = b"{}"
    headers: Mapping[str, str] = field(default_factory=dict)

    def encoded(self, length: int | None = None) -> bytes:
        """The answer's bytes; `length`: a wrong content length, for its head."""
        size = len(self.body) if length is None else length
        lines = [f"HTTP/1.1 {self.status} -", f"content-length: {size}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "", ""]).encode() + self.body


HTML = b"<html><body>Bad Gateway</body></html>"

#: Faulty answers by their fault. None of these says whether a customer was created.
LOST: Mapping[str, bytes | None] = {
    "no answer": None,
    "closed": b"",
    "cut off": Reply(200, b'{"id').encoded(100),
    "not HTTP": b"SSH-2.0-OpenSSH\r\n",
    **{f"HTTP {status}": Reply(status, HTML).encoded() for status in (500, 502, 503, 504)},
    "HTML": Reply(200, HTML).encoded(),
    "empty": Reply(200, b"").encoded(),
    "half of JSON": Reply(200, b'{"id": 7').encoded(),
    **{f"JSON {text}": Reply(200, text.encode()).encoded() for text in ("null", "[]", "{}", "7")},
    "not UTF-8": Reply(200, b'{"id": "\xff"}').encoded(),
    "NaN": Reply(200, b'{"id": NaN}').encoded(),
}


#: Bytes that a server sends before it closes the connection.
ENDS = tuple(LOST[fault] for fault in ("closed", "cut off", "not HTTP"))


class AnsweringServer:
    """Answers every request with the same bytes."""

    def __init__(self, answer: bytes | None) -> None:
        self._answer = answer
        self.requests: list[bytes] = []
        self._writers: list[asyncio.StreamWriter] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        self._writers.append(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                sizes = [
                    int(line.partition(b":")[2])
                    for line in head.lower().splitlines()
                    if line.startswith(b"content-length:")
                ]
                self.requests.append(head + await reader.readexactly(sum(sizes)))
                if self._answer is None:
                    await reader.read()
                writer.write(self._answer or b"")
                await writer.drain()
                if self._answer in ENDS:
                    return
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def close(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()


class ProviderConformance:
    """Subclass it, and fill in the values of your provider."""

    provider: ClassVar[type[Any]]
    account: ClassVar[Mapping[str, Any]] = {}
    """The account's settings, without `base_url`."""
    registration: ClassVar[Mapping[str, Any]]
    """A registration that the form accepts."""
    registers: ClassVar[Reply]
    """The provider's answer to a registration that it accepts."""
    secrets: ClassVar[Sequence[str]] = ()
    """Texts of the registration and of the account that must not be shown anywhere."""

    def call(self, answer: bytes | None, how: str = "register") -> tuple[Outcome, AnsweringServer]:
        """The outcome of a call to a server with this answer."""

        async def both() -> tuple[Outcome, AnsweringServer]:
            server = AnsweringServer(answer)
            listening = await asyncio.start_server(server, "127.0.0.1", 0)
            port = listening.sockets[0].getsockname()[1]
            try:
                return await self._ask(port, how, SHORT if answer is None else AMPLE), server
            finally:
                listening.close()
                server.close()
                await asyncio.sleep(0)

        return asyncio.run(both())

    async def _ask(self, port: int, how: str, budget: float) -> Outcome:
        transport = HttpTransport(budget)
        send = transport.sender(lambda: True, budget)
        settings = self.provider.Account(**{**self.account, "base_url": f"http://127.0.0.1:{port}"})
        given = (settings, send, JOB) if self._takes_a_job() else (settings, send)
        provider: Provider = self.provider(*given)
        registration = self.provider.Registration.model_validate(dict(self.registration))
        try:
            outcome: Outcome = await getattr(provider, how)(registration)
        finally:
            await transport.aclose()
        for secret in self.secrets:
            assert secret not in repr(outcome), f"the outcome shows a secret: {outcome!r}"
        return outcome

    def _takes_a_job(self) -> bool:
        return "job" in signature(self.provider).parameters

    def test_a_customer_is_registered(self) -> None:
        """The outcome is JSON, and fits the outcome model if there is one."""
        outcome, server = self.call(self.registers.encoded())
        assert isinstance(outcome, Registered), outcome
        data = json.loads(json.dumps(outcome.data))
        if (model := getattr(self.provider, "Gives", None)) is not None:
            model.model_validate(data)
        assert len(server.requests) == 1

    @pytest.mark.parametrize("fault", LOST)
    def test_what_may_have_arrived_is_unknown(self, fault: str) -> None:
        """It proves neither that a customer was created nor that none was."""
        outcome, _ = self.call(LOST[fault])
        assert isinstance(outcome, Unknown), outcome

    @pytest.mark.parametrize("fault", LOST)
    def test_a_question_without_an_answer_proves_nothing(self, fault: str) -> None:
        """If it counted as absence, the registration would be sent again."""
        outcome, _ = self.call(LOST[fault], "find_out")
        assert isinstance(outcome, Unknown | Retryable), outcome

    def test_what_was_not_sent_is_tried_again(self) -> None:
        """Nothing listens at the address."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        outcome = asyncio.run(self._ask(port, "register", AMPLE))
        assert isinstance(outcome, Retryable), outcome

    @pytest.mark.parametrize("how", ["register", "find_out"])
    def test_a_provider_that_says_wait_is_obeyed(self, how: str) -> None:
        """The worker waits as long as the provider asks."""
        reply = Reply(429, b"slow down", {"retry-after": "7"})
        outcome, _ = self.call(reply.encoded(), how)
        assert isinstance(outcome, Retryable | Unknown), outcome
        assert outcome.retry_after == 7
        assert how == "find_out" or isinstance(outcome, Retryable)

    @pytest.mark.parametrize("status", [401, 403])
    @pytest.mark.parametrize("how", ["register", "find_out"])
    def test_refused_credentials_are_the_accounts_fault(self, how: str, status: int) -> None:
        """The customer is not rejected."""
        outcome, _ = self.call(Reply(status, HTML).encoded(), how)
        assert isinstance(outcome, Refused), outcome

    @pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 405, 409, 410, 422, 418])
    def test_a_refusal_registers_nobody(self, status: int) -> None:
        """The job is rejected and not retried for ever."""
        outcome, server = self.call(Reply(status, HTML).encoded())
        assert isinstance(outcome, Rejected | Refused | Unknown), outcome
        assert len(server.requests) == 1

    def test_a_provider_that_quotes_what_it_got(self) -> None:
        """With any status: no secret of ours gets into an event."""
        for spelt in SPELLINGS.values():
            quoted = [spelt(secret) for secret in self.secrets]
            said = json.dumps({"error": " ".join(quoted), "message": quoted}).encode()
            # As it is with each status; a status is read in the same way for all spellings.
            for status in (200, 400, 409, 422, 500) if spelt is str else (200, 400):
                for how in ("register", "find_out"):
                    outcome, _ = self.call(Reply(status, said).encoded(), how)
                    assert not isinstance(outcome, Registered), outcome
                    for secret in self.secrets:
                        assert not quotes(repr(outcome), secret), f"shows a secret: {outcome!r}"

    def test_settings_and_registrations_show_no_secret(self) -> None:
        """Neither as text nor in an error."""
        account = self.provider.Account(**{**self.account, "base_url": "https://provider.example"})
        registration = self.provider.Registration.model_validate(dict(self.registration))
        shown = f"{account!r} {registration!r}"
        for name, given in self.registration.items():
            wrong = {**self.registration, name: [given]}
            try:
                self.provider.Registration.model_validate(wrong)
            except ValueError as error:
                shown += str(error)
        for secret in self.secrets:
            assert secret not in shown, "use SecretStr, repr=False and hide_input_in_errors=True"

    def test_a_field_that_is_unknown_is_refused(self) -> None:
        """Otherwise a misspelt field would be lost silently."""
        model: type[BaseModel] = self.provider.Registration
        with pytest.raises(ValueError, match=r"no_such_field_of_a_form"):
            model.model_validate({**self.registration, "no_such_field_of_a_form": 1})
