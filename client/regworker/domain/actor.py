"""A person who acts on an installation, as named in the audit log."""

from dataclasses import dataclass

#: Characters of a name, a role or a place; of a reason. They keep entries of the audit log small.
MOST_NAME, MOST_REASON = 100, 500


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, in which role, from where, and why. No field may contain personal data or a secret.

    Control characters become spaces, and long texts are cut.
    """

    who: str
    role: str = "operator"
    where: str = "cli"
    """Where the action came from: `cli`, `api`, `page`."""
    why: str = ""

    def __post_init__(self) -> None:
        for name, most in _LENGTHS.items():
            text = "".join(one if one.isprintable() else " " for one in getattr(self, name))
            object.__setattr__(self, name, text.strip()[:most])
        if not self.who:
            raise ValueError("who: is required: name the person who takes the action")

    @property
    def packed(self) -> str:
        """The form for `record_act()` in `_lib.lua`: a line for each field."""
        return f"{self.who}\n{self.role}\n{self.where}\n{self.why}"


_LENGTHS = {"who": MOST_NAME, "role": MOST_NAME, "where": MOST_NAME, "why": MOST_REASON}


def packed(actor: Actor | None) -> str:
    """The same; '' if no person acts."""
    return actor.packed if actor else ""
