"""Numbers as text, the same on every page, in Markdown and on the terminal. Minus signs are real ones (−)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Significance = Literal["good", "bad", "same"]
ALPHA = 0.05  # significance level of all tests
UNEQUAL = "†"  # marks a difference between models that were tuned with unequal numbers of trials
STRATUM_TITLES = {
    "item_degree": "target items by training clicks",
    "item_popularity": "target items by popularity",
    "user_activity": "users by history length",
}
VISIBLE = 5e-5  # what is below is 0 in the four decimals of a metric
FACTOR_FROM = 5.0  # relative differences from +500 % on are written as a factor


def differs(difference: float) -> bool:
    """Is there more than an error of rounding? Where there is no difference, its test has p = 1 and says nothing."""
    return abs(difference) > 1e-12


def are_best(values: Sequence[float]) -> list[bool]:
    """Is a value the highest? None is where all are equal: all 0, or only one."""
    top = max(values, default=0.0)
    return [value == top > min(values) for value in values]


def leaders(values: Mapping[str, float]) -> list[str]:
    """The names that share the highest value; [] where that is 0, so that nothing is called best for nothing."""
    top = max(values.values(), default=0.0)
    return [name for name, value in values.items() if value == top > 0]


def listed(names: Sequence[str]) -> str:
    """ "ease", "ease and z-sum", "ease, z-sum and hybrid"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def markdown_text(text: str) -> str:
    """A text of the data within Markdown: nothing in it is markup, also where Markdown lets HTML through."""
    escaped = re.sub(r"([\\`*\[\]<>&])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^([#+=~-])", r"\\\1", escaped)


def number(value: float) -> str:
    """A metric: "0.0795"."""
    return f"{value:.4f}"


def short(value: float, sign: Literal["", "+"] = "") -> str:
    """Four decimals without the leading zero, for narrow tables: ".0795"; with a sign "+.0042", "0" (as `signed`)."""
    if sign and abs(value) < VISIBLE:
        return "0"
    return f"{value:{sign}.4f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    """A difference: "+0.0042", "−0.0042"; "0" where it is below half of the last digit."""
    return _minus(f"{value:+.4f}") if abs(value) >= VISIBLE else "0"


def percent(share: float, digits: int = 1) -> str:
    """A relative difference: "+8.0 %", "−50.0 %", "0.0 %"; a factor where it is large: "×13.0"."""
    if round(100 * share, digits) == 0:
        return f"{0:.{digits}f} %"
    return _minus(f"{100 * share:+.{digits}f} %") if share < FACTOR_FROM else f"×{share + 1:.1f}"


def relative(share: float | None, difference: float) -> str:
    """`percent`; "equal" without a difference; where the mean that it is relative to is 0: "from 0", "both 0"."""
    if share is None:
        return "from 0" if differs(difference) else "both 0"
    return percent(share) if differs(difference) else "equal"


def against_text(share: float | None, difference: float, other: str) -> str:
    """Within a sentence: "+8.0 % against ease", or "against 0 of ease"."""
    return f"against {number(0)} of {other}" if share is None else f"{relative(share, difference)} against {other}"


def p_value(p: float) -> str:
    """For a column of them: "<.001", ".034"."""
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def p_text(p: float) -> str:
    """Within a text: "p<.001", "p .034"."""
    return f"p {p_value(p)}".replace(" <", "<")


def significance(difference: float, p: float) -> Significance:
    """ "good" or "bad" for a significant difference, else "same"; also the names of the CSS classes."""
    if p >= ALPHA:
        return "same"
    return "good" if difference > 0 else "bad"


def significance_text(p: float) -> str:
    """ "significant, p<.001, Holm-corrected"."""
    return f"{'significant' if p < ALPHA else 'not significant'}, {p_text(p)}, Holm-corrected"


def interval(low: float, high: float) -> str:
    """An interval of a metric: "0.0703–0.0867"; "" where it is a point, as every user has the same value (mostly 0)."""
    return f"{low:.4f}–{high:.4f}" if low < high else ""


def interval_text(low: float, high: float) -> str:
    """`interval` after a value within a sentence: " (95 % interval 0.0703 to 0.0867)", or ""."""
    return f" (95 % interval {low:.4f} to {high:.4f})" if low < high else ""


def spread(std: float | None) -> str:
    """Standard deviation between seeds: "±0.0007"; "±0" where the seed changes nothing, "" with one seed."""
    if std is None:
        return ""
    return f"±{std:.4f}" if std >= VISIBLE else "±0"


def integer(value: float) -> str:
    """ "12,345"."""
    return f"{value:,.0f}"


def seconds(value: float | None) -> str:
    """ "1,234.5"; "" where it is not known."""
    return "" if value is None else f"{value:,.1f}"


def settings_text(settings: Mapping[str, Any]) -> str:
    """ "l2 100, decay 0.9"; "" without any."""
    return ", ".join(f"{key.removeprefix('model.')} {_setting(value)}" for key, value in settings.items())


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _minus(text: str) -> str:
    return text.replace("-", "−")
