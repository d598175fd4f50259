"""The sandbox's HTTP interface shows what happened and controls faults."""

from collections.abc import Iterator

import httpx
import pytest

from sandbox.client import SandboxClient
from sandbox.documented import OPEN2B_SIGN_UP, SKYPOSTAL_REGISTRATION
from sandbox.server import SandboxServer

EMAIL = "holmes@inv-london.com"


@pytest.fixture(scope="module")
def http(running: SandboxServer) -> Iterator[httpx.Client]:
    """A client of the sandbox's web app."""
    with httpx.Client(base_url=running.url) as client:
        yield client


@pytest.fixture
def client(server: SandboxServer) -> Iterator[SandboxClient]:
    """A control client of the freshly reset sandbox."""
    with SandboxClient(server.url) as control:
        yield control


def sign_up(http: httpx.Client) -> httpx.Response:
    """Create a customer at Open2b."""
    return http.post("/api/v10/storefront.sign-up", json=OPEN2B_SIGN_UP)


def register(http: httpx.Client) -> None:
    """Create a customer at SkyPostal."""
    http.post(
        "/wcf-services/service-customer.svc/customer/customer-registration",
        json=SKYPOSTAL_REGISTRATION | {"user_code": 1, "app_key": "any"},
    )


def test_health_counts(client: SandboxClient, http: httpx.Client) -> None:
    """Health shows the number of accounts, duplicates and requests."""
    client.settings(open2b={"unique": False})
    sign_up(http)
    sign_up(http)
    assert client.health() == {
        "status": "ok",
        "accounts": {"skypostal": 0, "open2b": 2},
        "duplicates": {"skypostal": 0, "open2b": 1},
        "requests": 2,
    }


def test_accounts_are_listed_without_secrets(client: SandboxClient, http: httpx.Client) -> None:
    """The list has what a test compares, and no password or key."""
    key = sign_up(http).headers["x-customer-key"]
    [account] = client.accounts()
    assert account["provider"] == "open2b"
    assert account["email"] == EMAIL
    assert account["store"] == "127.0.0.1"
    assert set(account) == {
        "seq",
        "provider",
        "store",
        "email",
        "created_at",
        "box_id",
        "customer_key_sha256",
    }
    assert key not in str(account)


def test_accounts_are_found_by_provider_and_email(
    client: SandboxClient, http: httpx.Client
) -> None:
    """Each of the two filters works alone, and both together."""
    sign_up(http)
    register(http)
    assert len(client.accounts()) == 2
    assert [account["box_id"] for account in client.accounts("skypostal")] == [811111]
    assert [account["provider"] for account in client.accounts(email=EMAIL.upper())] == ["open2b"]
    assert client.accounts("skypostal", EMAIL) == []


def test_requests_are_listed_with_what_came_of_them(
    client: SandboxClient, http: httpx.Client
) -> None:
    """The list has each request's call, fault and status, and whether it created an account."""
    client.faults(script=[{"kind": "server_error", "status": 502, "commit": True}])
    sign_up(http)
    sign_up(http)
    seen = client.requests("open2b", "storefront.sign-up", EMAIL)
    assert [(item["fault"], item["status"], item["committed"]) for item in seen] == [
        ("server_error", 502, True),
        (None, 200, False),
    ]
    assert client.requests("skypostal") == []


def test_faults_are_replaced_as_a_whole(client: SandboxClient, http: httpx.Client) -> None:
    """New faults replace all earlier ones; without arguments the call returns those that are
    left."""
    client.faults(script=[{"kind": "forbidden", "times": 2}], rates={"reset": 0.5}, seed=9)
    client.faults(script=[{"kind": "forbidden", "times": 2}])
    assert sign_up(http).status_code == 403
    assert client.faults() == {
        "script": [{"kind": "forbidden", "times": 1}],
        "rates": {},
        "seed": 1,
    }


def test_an_empty_script_ends_the_faults(client: SandboxClient, http: httpx.Client) -> None:
    """An empty script removes all faults."""
    client.faults(rates={"forbidden": 1})
    client.faults(script=[])
    assert sign_up(http).status_code == 200


def test_settings_change_only_what_is_named(client: SandboxClient) -> None:
    """Other settings, and the other provider's, do not change."""
    before = client.settings()
    after = client.settings(open2b={"mandatory_consents": [3]})
    assert after["open2b"] == before["open2b"] | {"mandatory_consents": [3]}
    assert after["skypostal"] == before["skypostal"]


def test_settings_are_shown_without_secrets(client: SandboxClient) -> None:
    """They show that a key is set, and not its value."""
    shown = client.settings(skypostal={"app_key": "hidden"}, open2b={"secret_key": "hidden"})
    assert shown["skypostal"]["app_key"] == shown["open2b"]["secret_key"] == "***"


def test_a_reset_forgets_everything(client: SandboxClient, http: httpx.Client) -> None:
    """After a reset the sandbox is as after its start."""
    start = client.settings()
    client.settings(open2b={"unique": False})
    sign_up(http)
    client.faults(script=[{"kind": "reset"}])
    client.reset()
    assert client.accounts() == client.requests() == client.faults()["script"] == []
    assert client.settings() == start


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ([], "settings must be an object."),
        ({"ups": {}}, "settings.ups is unknown; settings takes open2b, skypostal."),
        ({"open2b": 1}, "open2b must be an object."),
        ({"skypostal": {"carts": []}}, "skypostal.carts is unknown; skypostal takes app_key,"),
        ({"open2b": {"unique": 1}}, "open2b.unique must be true or false."),
        ({"open2b": {"carts": "x"}}, "open2b.carts must be a list."),
        (
            {"open2b": {"newsletter_lists": [1, "2"]}},
            "open2b.newsletter_lists[1] must be a whole number of at least 0.",
        ),
        ({"open2b": {"secret_key": 1}}, "open2b.secret_key must be a string."),
        (
            {"open2b": {"call_limit_status": 200}},
            "open2b.call_limit_status must be a whole number of at least 400.",
        ),
        (
            {"open2b": {"call_limit_status": 600}},
            "open2b.call_limit_status must be an HTTP error status.",
        ),
        (
            {"skypostal": {"bad_credentials": "ignore"}},
            "skypostal.bad_credentials must be http_401 or verify_false.",
        ),
    ],
)
def test_wrong_settings_are_refused_in_a_sentence(
    server: SandboxServer, http: httpx.Client, settings: object, sentence: str
) -> None:
    """The answer is 400, names the setting and its valid values, and nothing changes."""
    before = server.sandbox.settings()
    answer = http.put("/sandbox/settings", json=settings)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(sentence)
    assert server.sandbox.settings() == before


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize("path", ["/sandbox/faults", "/sandbox/settings"])
def test_control_takes_json_only(http: httpx.Client, path: str) -> None:
    """A body that isn't JSON is refused with 400."""
    answer = http.put(path, content=b"{")
    assert answer.status_code == 400
    assert answer.json() == {"error": "The body must be JSON."}


def test_the_client_raises_what_the_sandbox_says(client: SandboxClient) -> None:
    """A refused script is a `ValueError` with the sandbox's message."""
    with pytest.raises(ValueError, match=r"faults\.script\[0\]\.times must be a whole number"):
        client.faults(script=[{"kind": "reset", "times": 1.5}])
