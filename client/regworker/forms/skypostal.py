"""SkyPostal's registration, as its page documents it ("Request Parameters")."""

import re
from datetime import date
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from regworker.domain.errors import FieldError
from regworker.forms.base import Form

EMAIL = re.compile(r"[^\s@]+@[^\s@.]+(\.[^\s@.]+)+")


BIRTH_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _email(value: str) -> str:
    if not EMAIL.fullmatch(value):
        raise FieldError("must be an e-mail address")
    return value


def _birth_date(value: str) -> str:
    try:
        if BIRTH_DATE.fullmatch(value) and date.fromisoformat(value):
            return value
    except ValueError:
        pass
    raise FieldError("must be a real date, as YYYY-MM-DD")


Text = Annotated[str, Field(min_length=1)]


class SkyPostalAddress(Form):
    """One item of `customer_address`."""

    city_code: int = Field(description="From geographic-get-cities.")
    locality_town: Text
    neighborhood: Text
    address_01: Text = Field(description="Street, number of the house, etc.")
    zip_code: Text


class SkyPostalPhone(Form):
    """One item of `customer_phone`."""

    phone_area_code: Text = Field(description="From geographic-get-countries, e.g. `+1`.")
    phone_number: Text
    phone_extension: str = ""
    # Not `Literal`, which accepts `true` for 1.
    phone_type: int = Field(ge=1, le=2, description="1: home or office, 2: mobile.")


class SkyPostalRegistration(Form):
    """The body without credentials (registration page, "Request Parameters")."""

    copa_id: int = Field(
        default=0, ge=1, description="The commercial partner's number; default: the account's."
    )
    language_code: Literal["ENG", "ESP"]
    customer_first_name: Text
    customer_last_name: Text
    customer_identity_number: Text = Field(repr=False)
    customer_tax_number: int = Field(default=0, repr=False, description="Of a company.")
    customer_birth_date: Annotated[str, AfterValidator(_birth_date)] = Field(
        json_schema_extra={"format": "date"}
    )
    customer_email: Annotated[str, AfterValidator(_email)] = Field(
        json_schema_extra={"format": "email"}
    )
    customer_password: Text = Field(repr=False, description="Any character; never trimmed.")
    customer_gender: Literal["M", "F"]
    customer_campaign: str = ""
    customer_email_agreement: bool = False
    customer_referred_by: int | None = Field(
        default=None, description="Box id of the customer who referred this one."
    )
    customer_address: list[SkyPostalAddress] = Field(min_length=1, max_length=1)
    customer_phone: list[SkyPostalPhone] = Field(
        min_length=2, description="The first is the phone of the address."
    )
