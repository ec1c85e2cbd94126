"""What a check found, and how a person reads it."""

from collections.abc import Iterable
from dataclasses import dataclass

LEVELS = ("ok", "unknown", "warning", "FAIL")


@dataclass
class Finding:
    """One line of the doctor.

    Args:
        level: one of LEVELS; `unknown` is what could not be looked at here, such as data on the Hub while offline.
        what: was looked at, in a few words. reason: what was found, with its rows or numbers. fix: what to do about it.
        where: the file, row or setting.
    """

    level: str
    what: str
    reason: str
    fix: str = ""
    where: str = ""


def ok(what: str, reason: str, where: str = "") -> Finding:
    """A finding of which nothing follows."""
    return Finding("ok", what, reason, "", where)


def unknown(what: str, reason: str, fix: str = "", where: str = "") -> Finding:
    """What could not be looked at."""
    return Finding("unknown", what, reason, fix, where)


def warning(what: str, reason: str, fix: str, where: str = "") -> Finding:
    """What a person should know before the run begins."""
    return Finding("warning", what, reason, fix, where)


def fail(what: str, reason: str, fix: str, where: str = "") -> Finding:
    """What stops the run, or has it train on something else than was meant."""
    return Finding("FAIL", what, reason, fix, where)


def refused(what: str, error: BaseException, where: str = "") -> Finding:
    """An error of the recipes' own checks; what follows the last semicolon of such a line is the fix.

    Example: "a.jsonl: no such file; name another" -> reason "a.jsonl: no such file", fix "name another".
    """
    reason, _, fix = " ".join(str(error).split()).rpartition("; ")
    return Finding("FAIL", what, reason or fix, fix if reason else "", where)


def in_words(finding: Finding) -> str:
    """What was found, why and what mends it, in one line."""
    where = f" [{finding.where}]" if finding.where and finding.where not in finding.reason else ""
    return " ".join(f"{finding.what}: {finding.reason}{'; ' + finding.fix if finding.fix else ''}{where}".split())


def some(places: Iterable[str], shown: int = 5) -> str:
    """The first of many places: "train row 1, 5, 9, ... (12 in all)"; the name that they share stands once."""
    listed = list(places)
    name = listed[0].rpartition(" ")[0] if listed else ""
    short = [place.removeprefix(f"{name} ") if number else place for number, place in enumerate(listed[:shown])]
    return ", ".join(short) + (f", ... ({len(listed):,} in all)" if len(listed) > shown else "")


def share(part: int, whole: int) -> str:
    """A count and its share: "12 of 300 (4.0 %)"."""
    percent = 100 * part / max(whole, 1)
    return f"{part:,} of {whole:,} ({percent:.{0 if percent >= 10 else 1}f} %)"
