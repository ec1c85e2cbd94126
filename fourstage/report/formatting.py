"""How numbers are written on the page. What is missing or not finite is a dash."""

import math

DASH = "–"


def finite(value: object) -> float | None:
    """The value as a float if it is a finite number, else None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def mean_of(row: dict | None, key: str) -> float | None:
    """The mean of a metric in a row of the stage table, or None."""
    metric = (row or {}).get("metrics", {}).get(key)
    return finite(metric.get("mean")) if isinstance(metric, dict) else None


def value(number: object, percent: bool = False) -> str:
    """0.8812 as a share -> "88.1 %"; otherwise three decimals, 1.234, or fewer: 12.34, 123.4."""
    number = finite(number)
    if number is None:
        return DASH
    return f"{_fixed(100 * number, 1)} %" if percent else _fixed(number, _decimals(number))


def points(share: float) -> str:
    """A difference of shares: 0.123 -> "12.3 points"."""
    return f"{_fixed(100 * share, 1)} points"


def measured(metric: object, percent: bool) -> str:
    """{"mean": 0.8812, "stderr": 0.0123} as a share -> "88.1 % ± 1.2"."""
    if not isinstance(metric, dict) or finite(metric.get("mean")) is None:
        return DASH
    mean, stderr = finite(metric["mean"]), finite(metric.get("stderr"))
    if stderr is None:
        return value(mean, percent)
    spread = _fixed(100 * stderr, 1) if percent else _fixed(stderr, _decimals(mean))
    return f"{value(mean, percent)} ± {spread}"


def count(number: object) -> str:
    """1234567 -> "1.23M"; 12345 -> "12,345"."""
    number = finite(number)
    if number is None:
        return DASH
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:,.0f}"


def duration(seconds: object) -> str:
    """45.2 -> "45 s"; 540 -> "9.0 min"; 7200 -> "2.0 h"."""
    seconds = finite(seconds)
    if seconds is None:
        return DASH
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def operations(flops: object) -> str:
    """2.35e13 -> "2.4e13"."""
    flops = finite(flops)
    return DASH if not flops else f"{flops:.1e}".replace("e+", "e")


def short(number: object) -> str:
    """Any setting: 0.0003 -> "0.0003", 1e-05 -> "1e-05", ["a", "b"] -> "a, b"."""
    if isinstance(number, list):
        return ", ".join(short(item) for item in number)
    return f"{number:g}" if isinstance(number, float) else str(number)


def _decimals(number: float) -> int:
    return 3 if abs(number) < 10 else 2 if abs(number) < 100 else 1


def _fixed(number: float, decimals: int) -> str:
    """With a true minus sign, and no minus before what is rounded to zero."""
    text = f"{number:,.{decimals}f}"
    return text.lstrip("-") if float(text.replace(",", "")) == 0 else text.replace("-", "−")
