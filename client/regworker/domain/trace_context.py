"""The header `traceparent` of W3C Trace Context: parsed strictly; a malformed one is ignored.

Source: W3C Recommendation "Trace Context", section 3.2.
"""

import re

#: Version, trace id, span id, flags; a future version may have more after them.
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")

#: Longer than any known version: longer values are not parsed.
_LONGEST = 512

_NO_VERSION = "ff"


def traceparent(value: object) -> str:
    """A value in the spelling of version 00; empty if it is malformed.

    A trace is never a reason to refuse a job.
    """
    if not isinstance(value, str) or len(value) > _LONGEST:
        return ""
    found = _FORM.fullmatch(value)
    if found is None:
        return ""
    version, trace_id, span_id, flags, more = found.groups()
    if version == _NO_VERSION or (version == "00" and more is not None):
        return ""
    if not int(trace_id, 16) or not int(span_id, 16):
        return ""
    return f"00-{trace_id}-{span_id}-{int(flags, 16) & _KNOWN_FLAGS:02x}"


#: Sampled, and (level 2) random trace id.
_KNOWN_FLAGS = 0x03


def trace_of(text: str) -> str:
    """The trace's id in a value that is well formed."""
    return text[3:35]
