"""Open2b's registration, as the sign-up page documents it ("Request")."""

from typing import Annotated, Any

from pydantic import Field

from regworker.forms.base import Form


def _string(minimum: int, maximum: int) -> Any:
    return Field(default="", min_length=minimum, max_length=maximum)


class Open2bAddress(Form):
    """The billing address. Limits as documented; the worker needs only the e-mail to look it up.

    The documentation does not say which other fields a store requires, so the store decides.
    """

    firstName: str = _string(1, 25)  # noqa: N815
    lastName: str = _string(1, 25)  # noqa: N815
    personalCode: str = Field(default="", max_length=20, repr=False)  # noqa: N815
    companyName: str = _string(0, 100)  # noqa: N815
    companyCode: str = _string(0, 20)  # noqa: N815
    companyCode2: str = _string(0, 20)  # noqa: N815
    street1: str = _string(1, 60)
    street2: str = _string(0, 60)
    city: str = _string(1, 25)
    postalCode: str = _string(1, 20)  # noqa: N815
    stateProv: str = _string(0, 3)  # noqa: N815
    country: str = Field(default="", pattern=r"^[A-Za-z]{2}$", description="ISO code.")
    phoneNumber: str = _string(0, 15)  # noqa: N815
    mobileNumber: str = _string(0, 15)  # noqa: N815
    faxNumber: str = _string(0, 15)  # noqa: N815
    email: str = Field(min_length=3, max_length=120)


class Open2bCustomer(Form):
    """The customer to sign up."""

    cart: Annotated[str, Field(min_length=32, max_length=32)] | None = None
    address: Open2bAddress
    privacyConsents: list[Annotated[int, Field(ge=1, le=256)]] = Field(  # noqa: N815
        description="The processing purposes that the customer consented to."
    )
    password: str = Field(min_length=6, max_length=16, repr=False)
    invoiceRecipient: str = Field(  # noqa: N815
        default="", max_length=256, description="Electronic invoice: recipient code or PEC."
    )
    newsletterLists: list[Annotated[int, Field(ge=1)]] = Field(default=[])  # noqa: N815


class Open2bRegistration(Form):
    """The documented body (sign-up page, "Request")."""

    customer: Open2bCustomer
    verificationCode: str = Field(  # noqa: N815
        default="", min_length=6, max_length=32, repr=False
    )
