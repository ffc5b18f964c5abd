"""Numbers and dates in words: "one hundred twenty-five", "two thirds", "five dollars", "May 5th".

What is understood is rewritten the way it is written in figures and then read like any other answer; what
is not stays words.
"""

from __future__ import annotations

import re

from verifiers.nodes import Const, Neg, Node, Sym
from verifiers.tables import MEANING

_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_PARTS = (
    "half third quarter fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth"
).split()
_DENOMINATORS = {name: 2 + k for k, name in enumerate(_PARTS)} | {
    "fourth": 4, "twentieth": 20, "hundredth": 100, "thousandth": 1000,
}  # fmt: skip
_DENOMINATORS |= {f"{name}s": k for name, k in _DENOMINATORS.items()} | {"halves": 2}
MAX_WORDS = 20
#: What whole answers in words mean.
IN_WORDS: dict[str, Node] = dict.fromkeys(
    ("all real numbers", "all reals", "the set of all real numbers", "any real number", "every real number",
     "all real values", "the real numbers"), Const("R"),
) | dict.fromkeys(
    ("infinity", "positive infinity", "plus infinity"), Const("oo")
) | dict.fromkeys(
    ("all integers", "the integers", "every integer", "the set of all integers"), Const("Z")
) | dict.fromkeys(
    ("all positive real numbers", "all positive reals"), Sym("setR+")
) | dict.fromkeys(("negative infinity", "minus infinity"), Neg(Const("oo")))  # fmt: skip


def cardinal(parts: list[str]) -> tuple[int, int] | None:
    """(value, words used) of the whole number that `parts` begin with; None when they do not."""
    total = current = used = 0
    scale = 10**15
    for index, word in enumerate(parts):
        if word in _SMALL and (current % 100 == 0 or (current % 10 == 0 and current % 100 >= 20)):
            value = _SMALL.index(word)
            if index and (not value or (current % 100 and value > 9)):
                break
            current += value
        elif word in _TENS and current % 100 == 0:
            current += 10 * (_TENS.index(word) + 2)
        elif word == "hundred" and 0 < current < 100:
            current *= 100
        elif word in _SCALES and current and _SCALES[word] < scale:
            scale = _SCALES[word]
            total, current = total + current * scale, 0
        elif word == "and" and index and parts[index - 1] in ("hundred", *_SCALES):
            continue
        else:
            break
        used = index + 1
    return (total + current, used) if used else None


def number_word(plain: str) -> int | None:
    """The whole number that normalised words name; None for other words."""
    parts = plain.replace("-", " ").split()
    found = cardinal(parts) if len(parts) <= MAX_WORDS else None
    return found[0] if found and found[1] == len(parts) else None


def in_figures(plain: str) -> str | None:
    """A number in words, with a fraction and a unit behind it where there are any, in figures: "two and a
    half hours" is `2 1/2 hours`. None when `plain` begins with no number or means something else."""
    parts = plain.casefold().replace("-", " ").split()
    if not parts or len(parts) > MAX_WORDS:
        return None
    sign = "-" if parts[0] in ("minus", "negative") and len(parts) > 1 else ""
    parts = parts[1:] if sign else parts
    if parts[0] in ("a", "an") and len(parts) > 1 and parts[1] in ("half", "third", "quarter", "hundred"):
        parts[0] = "one"
    if parts[0] == "half":
        parts.insert(0, "one")
    found = cardinal(parts)
    if found is None:
        return None
    value, used = found
    figures, rest = str(value), parts[used:]
    if rest and rest[0] in _DENOMINATORS and (rest[0].endswith("s") or rest[0] == "halves") == (value != 1):
        figures, rest = f"{value}/{_DENOMINATORS[rest[0]]}", rest[1:]
    elif rest[:1] == ["and"]:
        top = cardinal(["one" if word in ("a", "an") else word for word in rest[1:]])
        after = rest[1 + top[1] :] if top else []
        if not top or not after or after[0] not in _DENOMINATORS:
            return None
        figures, rest = f"{value} {top[0]}/{_DENOMINATORS[after[0]]}", after[1:]
    elif rest[:1] == ["point"] and len(rest) > 1 and all(word in _SMALL[:10] for word in rest[1:]):
        figures, rest = f"{value}." + "".join(str(_SMALL.index(word)) for word in rest[1:]), []
    if (
        len(rest) > 4
        or rest[:1] == ["point"]
        or MEANING & set(rest)
        or set(rest) & {"and", "or", *_SMALL, *_TENS}
    ):
        return None
    return f"{sign}{figures} {' '.join(rest)}".strip()


_MONTHS = ("january february march april may june july august september october november december").split()
_MONTH = "|".join(f"{m}|{m[:3]}\\.?" for m in _MONTHS)
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th|\^?\{?\\?(?:text|mathrm)?\{?(?:st|nd|rd|th)\}*)?"
_YEAR = r"(?:,?\s+(?P<year>\d{4}))?(?![\w\\^])"
_ISO_DATE = re.compile(r"(?P<year>\d{4})-(?P<month>0[1-9]|1[0-2])-(?P<day>[0-3]\d)")
_SLASHED_DATE = re.compile(r"0?(\d{1,2})/0?(\d{1,2})/(\d{4})")
_DATES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"(?<!\w)(?:the\s+)?{_DAY}\s+(?:of\s+)?(?P<month>{_MONTH}){_YEAR}",
        rf"(?<!\w)(?P<month>{_MONTH})\s+(?:the\s+)?{_DAY}{_YEAR}",
    )
)


def find_date(text: str) -> str | None:
    """The only day named in a sentence, as written; None when there is none or more than one."""
    found = [match.group() for pattern in _DATES for match in pattern.finditer(text)]
    longest = max(found, key=len, default=None)
    return longest if longest and all(part in longest for part in found) else None


def date(text: str) -> str | None:
    """A day of the year in one normal form ("may 5", "may 5 2024"; "5/6/2024" stays as it is, since countries
    differ); None when `text` is no date."""
    slashed = _SLASHED_DATE.fullmatch(text)
    if slashed and max(map(int, slashed.groups()[:2])) <= 31:
        return "/".join(slashed.groups())
    iso = _ISO_DATE.fullmatch(text)
    if iso and int(iso["day"]) <= 31:
        return f"{_MONTHS[int(iso['month']) - 1]} {int(iso['day'])} {iso['year']}"
    for pattern in _DATES:
        match = pattern.fullmatch(text.strip())
        if match and 1 <= int(match["day"]) <= 31:
            month = next(m for m in _MONTHS if m.startswith(match["month"].casefold()[:3]))
            return " ".join(filter(None, (month, str(int(match["day"])), match["year"])))
    return None
