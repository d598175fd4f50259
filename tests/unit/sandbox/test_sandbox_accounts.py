"""The sandbox's accounts: one for each e-mail, also with many threads and after restarts."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import pytest

from sandbox.accounts import Account, Accounts, EmailTaken, NewAccount


def new(
    email: str = "a@example.com", provider: str = "skypostal", password: str = "pass word "
) -> NewAccount:
    """Make a customer to register."""
    return NewAccount(provider, "616", email, password, "key-of-a-customer")


def test_an_email_is_registered_once() -> None:
    """A second registration of an e-mail is refused, in upper or lower case."""
    accounts = Accounts()
    accounts.create(new("a@example.com"))
    with pytest.raises(EmailTaken):
        accounts.create(new("A@Example.COM"))
    assert len(accounts) == 1


def test_providers_do_not_share_their_customers() -> None:
    """The same e-mail may be a customer of both providers."""
    accounts = Accounts()
    accounts.create(new(provider="skypostal"))
    accounts.create(new(provider="open2b"))
    assert accounts.count("skypostal") == accounts.count("open2b") == 1
    assert accounts.duplicates("skypostal") == 0


def test_without_uniqueness_every_registration_makes_an_account() -> None:
    """With uniqueness off, an e-mail that registers twice gets two accounts, and the duplicate
    is counted."""
    accounts = Accounts()
    first, second = (accounts.create(new(), unique=False) for _ in range(2))
    assert accounts.find("skypostal", "a@example.com") == [first, second]
    assert accounts.duplicates("skypostal") == 1


@pytest.mark.parametrize("unique", [True, False])
def test_registrations_at_the_same_time_are_atomic(unique: bool) -> None:
    """Of many simultaneous registrations of an e-mail one succeeds, or all with uniqueness off."""
    accounts = Accounts()

    def register(_: int) -> Account | None:
        try:
            return accounts.create(new(), unique=unique)
        except EmailTaken:
            return None

    with ThreadPoolExecutor(16) as pool:
        made = [account for account in pool.map(register, range(200)) if account]
    assert len(made) == len(accounts) == (1 if unique else 200)
    assert len({account.box_id for account in made}) == len(made)


def test_the_password_opens_its_account_only_exactly() -> None:
    """A password is compared character for character, including spaces."""
    accounts = Accounts()
    made = accounts.create(new())
    assert accounts.log_in("skypostal", "A@EXAMPLE.com", "pass word ") == made
    assert accounts.log_in("skypostal", "a@example.com", "pass word") is None
    assert accounts.log_in("open2b", "a@example.com", "pass word ") is None


def test_any_character_may_be_in_a_password() -> None:
    """This includes characters that JSON can spell but UTF-8 cannot."""
    accounts = Accounts()
    accounts.create(new(password="\ud800 ñ \0"))
    assert accounts.log_in("skypostal", "a@example.com", "\ud800 ñ \0")


def test_box_ids_count_up_from_the_documented_example() -> None:
    """The first box is 811111; accounts of other providers leave no gap."""
    accounts = Accounts()
    accounts.create(new("o@example.com", "open2b"))
    boxes = [accounts.create(new(f"{i}@example.com")).box_id for i in range(3)]
    assert boxes == [811111, 811112, 811113]


def test_neither_listing_nor_file_holds_a_password(tmp_path: Path) -> None:
    """Passwords are stored as hashes; a listing has no key either."""
    file = tmp_path / "accounts"
    accounts = Accounts(file)
    listed = str(accounts.create(new()).public())
    accounts.close()
    assert "pass word" not in file.read_text() + listed
    assert "key-of-a-customer" not in listed
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_accounts_survive_a_restart(tmp_path: Path) -> None:
    """A restarted provider knows its customers, and continues the numbers."""
    accounts = Accounts(tmp_path / "accounts")
    made = accounts.create(new())
    accounts.close()
    again = Accounts(tmp_path / "accounts")
    assert again.log_in("skypostal", "a@example.com", "pass word ") == made
    with pytest.raises(EmailTaken):
        again.create(new())
    assert again.create(new("b@example.com")).box_id == 811112
    again.close()


def test_a_torn_last_line_is_no_account(tmp_path: Path) -> None:
    """A provider that was killed while writing an account starts without it, and continues
    cleanly."""
    file = tmp_path / "accounts"
    accounts = Accounts(file)
    accounts.create(new("a@example.com"))
    accounts.close()
    with file.open("ab") as torn:
        torn.write(b'{"seq": 2, "prov')
    again = Accounts(file)
    again.create(new("b@example.com"))
    again.close()
    third = Accounts(file)
    assert [account.email for account in third.find()] == ["a@example.com", "b@example.com"]
    third.close()


def test_clearing_empties_the_file(tmp_path: Path) -> None:
    """Deleted accounts stay deleted after a restart; later ones are kept."""
    accounts = Accounts(tmp_path / "accounts")
    accounts.create(new("a@example.com"))
    accounts.clear()
    accounts.create(new("b@example.com"))
    accounts.close()
    again = Accounts(tmp_path / "accounts")
    assert [account.email for account in again.find()] == ["b@example.com"]
    again.close()


def test_look_ups_stay_quick_in_a_large_ledger() -> None:
    """With 20,000 accounts, a thousand look-ups take no noticeable time."""
    accounts = Accounts()
    for i in range(20_000):
        accounts.create(new(f"{i}@example.com"))
    started = perf_counter()
    for i in range(1_000):
        assert accounts.find("skypostal", f"{i}@example.com")
    assert perf_counter() - started < 0.5  # scans would take more than a second
