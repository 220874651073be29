"""A file or image that is not taken: an expected outcome with a reason, not a crash."""

from pipeline.tables.files import FILE_REASONS, IMAGE_REASONS


class Refusal(Exception):  # noqa: N818 - an outcome, not an error
    """Raised while reading one image; the stage turns it into a row of its exclusions table.

    Attributes:
        reason: one of the closed list in ``pipeline.tables``.
        detail: what was seen, quoting no value of the header.
        outcome: "rejected", or "quarantined" where the file can be read and a person or a policy must decide.
    """

    outcome = "rejected"

    def __init__(self, reason: str, detail: str = "") -> None:
        if reason not in FILE_REASONS | IMAGE_REASONS:
            raise ValueError(f"unknown reason {reason!r}")
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type["Refusal"], tuple[str, str]]:
        """Exceptions with two arguments do not pickle by themselves; workers must hand this one back."""
        return type(self), (self.reason, self.detail)


class Quarantine(Refusal):
    """A readable file that a policy keeps out until a person decides."""

    outcome = "quarantined"
