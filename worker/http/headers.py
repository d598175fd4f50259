"""What a header may contain, so that every HTTP client and server treats it alike (RFC 9110)."""

import re

#: Section 5.1.
HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

#: Section 5.5.
HEADER_VALUE = re.compile(r"(?:[!-~]+(?:[ \t]+[!-~]+)*)?")
