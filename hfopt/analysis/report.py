"""What a check found, and all findings together as a page to read."""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

_WIDTH = 100


class Status(StrEnum):
    """How a check ended. A warning is about something that may be meant; a failure is about numbers that are wrong."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "FAILED"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    status: Status
    detail: str  # what was measured
    advice: str = ""  # what to do about it

    def __str__(self) -> str:
        head = f"{self.status:<8} {self.name:<12} "
        indent = " " * len(head)
        lines = textwrap.wrap(self.detail, _WIDTH, initial_indent=head, subsequent_indent=indent)
        if self.advice:
            lines += textwrap.wrap(f"→ {self.advice}", _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ")
        return "\n".join(lines)


@dataclass(frozen=True)
class Report:
    """The findings of `hfopt.check`: print it, or ask for one of them, ``report["gradient"].status``."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed. Warnings do not count."""
        return not any(finding.status is Status.FAILED for finding in self.findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __getitem__(self, name: str) -> Finding:
        for finding in self.findings:
            if finding.name == name:
                return finding
        raise KeyError(f"There is no check {name!r}; there are {', '.join(f.name for f in self.findings)}.")

    def __str__(self) -> str:
        count = lambda status: sum(finding.status is status for finding in self.findings)  # noqa: E731
        failed, warnings = count(Status.FAILED), count(Status.WARNING)
        head = f"hfopt.check: {len(self.findings)} checks, {failed} failed, {warnings} with a warning"
        return "\n".join([head, *map(str, self.findings)])
