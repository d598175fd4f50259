"""The providers' documented example bodies, value for value, for tests and demonstrations.

SkyPostal's is given without the credentials; in Open2b's, the dots of "and so on" are left out.
Copy before changing: `copy.deepcopy`.
"""

from typing import Any, Final

#: [doc] SkyPostal, "Register and Activate Virtual Customer", example request.
SKYPOSTAL_REGISTRATION: Final[dict[str, Any]] = {
    "language_code": "ENG",
    "copa_id": 616,
    "customer_first_name": "John",
    "customer_last_name": "Doe",
    "customer_identity_number": "11111111",
    "customer_tax_number": 11111,
    "customer_birth_date": "1980-08-19",
    "customer_email": "johndoe@email.com",
    "customer_password": "pass123",
    "customer_gender": "M",
    "customer_campaign": "Test Campaign",
    "customer_email_agreement": False,
    "customer_referred_by": None,
    "customer_address": [
        {
            "city_code": 95411,
            "locality_town": "Locality/Town",
            "neighborhood": "Neighborhood",
            "address_01": "123 Fake St.",
            "zip_code": "998877",
        }
    ],
    "customer_phone": [
        {
            "phone_area_code": "+1",
            "phone_number": "123456789",
            "phone_extension": "333",
            "phone_type": 1,
        },
        {
            "phone_area_code": "+1",
            "phone_number": "987654321",
            "phone_extension": "",
            "phone_type": 2,
        },
    ],
}

#: [doc] SkyPostal, the same page, example answer.
SKYPOSTAL_REGISTERED: Final[list[dict[str, Any]]] = [
    {
        "_verify": True,
        "customer_box_id": 811111,
        "customer_key": "YpbCNpzqxYqVWv+tzg4e4Ex6ALiT+DfKSYA3NY2dZcw=",
        "error": {"error_description": "", "error_location": "", "system_error": False},
    }
]

#: [doc] Open2b 7.5, "sign-up", example request.
OPEN2B_SIGN_UP: Final[dict[str, Any]] = {
    "customer": {
        "cart": "ebe766e73af1128d13217f1bcea6b9d9",
        "address": {
            "firstName": "Sherlock",
            "lastName": "Holmes",
            "personalCode": "SH239IBA",
            "companyName": "Investigations Inc",
            "companyCode": "INV8403MC1",
            "companyCode2": "7J BA3 006",
            "street1": "221b Baker Street",
            "street2": "",
            "city": "London",
            "postalCode": "NW1 6XE",
            "stateProv": "LND",
            "country": "GB",
            "phoneNumber": "+44+207 2243688",
            "mobileNumber": "",
            "faxNumber": "",
            "email": "holmes@inv-london.com",
        },
        "privacyConsents": [12, 3],
        "password": "I9bV2crS",
        "invoiceRecipient": "AB7TR6K",
        "newsletterLists": [5, 7],
    },
    "verificationCode": "AT67N3FG",
}

#: [doc] Open2b 7.5, the same page, example answer: its key and its body.
OPEN2B_CUSTOMER_KEY: Final = "RtRi8JWsxKNB8J3Qhhfsm5b5x9rvwippfnTel3mPy-X5R6GXlPECXTTMwTA1UJtg"
OPEN2B_SIGNED_UP: Final[dict[str, Any]] = {"status": "ok"}
