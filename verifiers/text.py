"""Characters: what Unicode may stand for which LaTeX, which invisible characters are harmless, and the
normal form in which text answers are compared."""

from __future__ import annotations

import re
import unicodedata

#: Harmless where they stand alone, misleading inside a number or word.
INVISIBLE = frozenset("\u00ad\u180e\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufeff")
#: Reorder or hide what is displayed: text with one of these cannot be read as written.
DECEPTIVE = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\x00\x08\x7f")

_REPLACED = {
    "\u2212": "-", "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\ufe63": "-",
    "\u00d7": r"\times ", "\u22c5": r"\cdot ", "\u00b7": r"\cdot ", "\u2219": r"\cdot ", "\u2022": r"\cdot ",
    "\u00f7": r"\div ", "\u2044": "/", "\u2215": "/", "\u2236": ":", "\u00b1": r"\pm ", "\u2213": r"\mp ",
    "\u221a": r"\usqrt ", "\u221b": r"\ucbrt ", "\u221e": r"\infty ", "\u03c0": r"\pi ",
    "\u2264": r"\le ", "\u2a7d": r"\le ", "\u2266": r"\le ", "\u2265": r"\ge ", "\u2a7e": r"\ge ",
    "\u2267": r"\ge ", "\u2260": r"\ne ", "\u2248": r"\approx ", "\u2243": r"\approx ", "\u2245": r"\approx ",
    "\u2261": r"\equiv ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ", "\u2209": r"\notin ",
    "\u2216": r"\setminus ", "\u2205": r"\emptyset ", "\u00b0": r"^\circ ", "\u00ba": r"^\circ ",
    "\u2103": r"^\circ \text{C}", "\u2109": r"^\circ \text{F}",
    "\u2032": "'", "\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2026": r"\ldots ",
    "\u22ef": r"\ldots ", "\u2192": r"\to ", "\u21d2": r"\implies ", "\u27f9": r"\implies ",
    "\u2211": r"\sum ", "\u222b": r"\int ", "\u220f": r"\prod ", "\u2308": r"\lceil ", "\u2309": r"\rceil ",
    "\u230a": r"\lfloor ", "\u230b": r"\rfloor ", "\u27e8": r"\langle ", "\u27e9": r"\rangle ",
    "\u2329": r"\langle ", "\u232a": r"\rangle ", "\u211d": r"\mathbb{R}", "\u2124": r"\mathbb{Z}",
    "\u2115": r"\mathbb{N}", "\u211a": r"\mathbb{Q}", "\u2102": r"\mathbb{C}", "\u2220": r"\angle ",
    "\u25b3": r"\triangle ", "\u2030": r"\permil ", "\u2227": r"\land ", "\u2228": r"\lor ",
    "\u3001": ",", "\u3002": ".", "\uff0c": ",", "\u300a": '"', "\u300b": '"', "\u20ac": r"\euro ",
    "\u00a3": r"\pounds ", "\u00a5": r"\yen ", "\u00a2": r"\cent ", "\u2223": "|", "\u2717": r"\xmark ",
}  # fmt: skip
_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho ? sigma tau "
    "upsilon phi chi psi omega"
).split()
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿ", "0123456789+-()n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n", strict=True))
_SCRIPT = re.compile(f"[{''.join(map(re.escape, _SUPERSCRIPTS))}]+|[{''.join(map(re.escape, _SUBSCRIPTS))}]+")
_OVERLINED = re.compile("(?:\\d\u0305)+")  # with combining overlines
_SPACES = re.compile(r"[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")


class Unreadable(ValueError):
    """The text cannot be read as an answer; the message says why."""


def clean(text: str) -> str:
    """`text` in the characters the lexer knows. Raises `Unreadable` for text that is displayed differently
    from what it says, has invisible characters inside a number or word, or mixes scripts in a number."""
    if text.isascii():
        if DECEPTIVE.isdisjoint(text):
            return text
        raise Unreadable("control characters")
    if not DECEPTIVE.isdisjoint(text):
        raise Unreadable("control characters that change what is displayed")
    text = _drop_invisible(text)
    text = _SPACES.sub(" ", text)
    text = _SCRIPT.sub(_script, text)
    text = _OVERLINED.sub(lambda m: rf"\overline{{{m.group()[::2]}}}", text)
    return "".join(_plain(text))


def _drop_invisible(text: str) -> str:
    if INVISIBLE.isdisjoint(text):
        return text
    kept: list[str] = []
    for index, char in enumerate(text):
        if char not in INVISIBLE:
            kept.append(char)
            continue
        before = text[index - 1 : index]
        after = text[index + 1 : index + 2]
        if (before.isalnum() or before in INVISIBLE) and (after.isalnum() or after in INVISIBLE) and kept:
            raise Unreadable("an invisible character inside a number or word")
    return "".join(kept)


def _script(match: re.Match[str]) -> str:
    run = match.group()
    if run[0] in _SUPERSCRIPTS:
        return "^{" + "".join(_SUPERSCRIPTS[c] for c in run) + "}"
    return "_{" + "".join(_SUBSCRIPTS[c] for c in run) + "}"


def _plain(text: str) -> list[str]:
    out: list[str] = []
    zero = 0  # code point of the digit zero of the script of the number being read
    for char in text:
        if char.isascii():
            if zero and char.isdigit():
                raise Unreadable("digits of different scripts in one number")
            out.append(char)
            zero = 0 if not char.isdigit() and char not in ".,/" else zero
            continue
        if unicodedata.category(char) == "Nd":
            script = ord(char) - unicodedata.decimal(char)
            if zero not in (0, script) or (not zero and out and out[-1][-1:].isdigit()):
                raise Unreadable("digits of different scripts in one number")
            zero = script
            out.append(str(unicodedata.decimal(char)))
            continue
        zero = 0
        out.append(_one(char))
    return out


def _one(char: str) -> str:
    if char in _REPLACED:
        return _REPLACED[char]
    code = ord(char)
    if 0x3B1 <= code <= 0x3C9:
        return "\\" + _GREEK[code - 0x3B1] + " "
    if char in "ΓΔΘΛΞΠΣΦΨΩ":
        return "\\" + unicodedata.name(char).split()[-1].capitalize() + " "
    if unicodedata.category(char) == "No":  # vulgar fractions; circled digits and the like stay unreadable
        expanded = unicodedata.normalize("NFKC", char)
        top, slash, bottom = expanded.partition("\u2044")
        return rf" \vfrac{{{top}}}{{{bottom}}}" if slash else char
    if 0xFF01 <= code <= 0xFF5E or 0x1D400 <= code <= 0x1D7FF:
        return unicodedata.normalize("NFKC", char)
    return char


_MARKUP = re.compile(
    r"\\(?:text|textbf|textit|textrm|textsf|texttt|mbox|hbox|mathrm|mathbf|mathit|mathsf|operatorname|emph|"
    r"underline|boxed|fbox|bf|it|rm|left|right|displaystyle|quad|qquad)\b\s*|\\[,;:! ]|\\[()\[\]]|[${}*`_~]"
)
_OUTER = " \t\r\n.,;:!?\"'()[]“”‘’«»。，！？"


def words(text: str) -> str:
    """The normal form of a text answer: no case, markup, outer punctuation or repeated spaces."""
    text = _MARKUP.sub(" ", text.replace("\\%", "%").replace("\\$", "$").replace("~", " "))
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).strip(_OUTER)
