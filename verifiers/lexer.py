"""From the characters of an answer to tokens. LaTeX, plain text and common Unicode share one token stream;
whatever only changes the look is dropped here, and whatever is not known stays unknown, so that the
parser refuses it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from verifiers.tables import (
    ALIASES,
    FONTS,
    SILENT,
    SILENT_WITH_ARGUMENT,
    SPACE,
    TEXT,
    TRANSPARENT_ENVIRONMENTS,
)
from verifiers.text import Unreadable

MAX_CHARS = 6000
MAX_TOKENS = 3000

_NUMBER = r"(?:\d+(?:\.\d+|\.(?=\s*\\(?:overline|bar|dot|ldots|dots)\b|\(\d+\)))?|\.\d+)"
_SCAN = re.compile(
    rf"""(?P<space>\s+|~)
    |(?P<bad>0[xX][0-9a-fA-F]|0[bo][0-7]+\b)
    |(?P<num>{_NUMBER}(?:[eE][+-]?\d{{1,6}}(?![\w.]))?)
    |(?P<cmd>\\(?:[a-zA-Z]+\*?|.))
    |(?P<name>[^\W\d_]+)
    |(?P<rel><=|>=|!=|:=|==|<>)
    |(?P<power>\*\*|\^)
    |(?P<dots>\.\.\.)
    |(?P<op>.)""",
    re.VERBOSE | re.DOTALL,
)
_LATEX_GROUPED = re.compile(
    r"(?<![\d.,])\d{1,3}(?:(?:\{,\}|\\!\s?|\\,\s?|\{\\,\}|\\ |\\!,|,\\[!,]\s?)\d{3})+(?!\d)"
)
_SPACE_GROUPED = re.compile(r"(?<![\d.,/^_{])(?<!\d )\d{1,3}(?: \d{3})+(?![\d/]| ?\d)")
_COMMA_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?!\d|,\d)")
_EUROPEAN = re.compile(
    r"(?<![\d.,])(?:\d{1,3}(?:\.\d{3}){2,}(?:,\d+)?|\d{1,3}(?:\.\d{3})+,\d{1,2}|"
    r"\d{1,3}(?: \d{3})+,\d\d)(?![\d.,])"
)
_APOSTROPHES = re.compile(r"(?<![\d.,'])\d{1,3}(?:'\d{3})+(?![\d'])")
_DIGITS_GROUP = re.compile(r"\s*\{(\d+)\}")
_ROW_SPACE = re.compile(r"(?:\s*\[-?[\d.]+\s?(?:pt|em|ex|mm|cm|in)\])?")
_OPENERS, _CLOSERS = "([", ")]"


@dataclass(frozen=True, slots=True)
class Token:
    """`kind` is num, cmd, name, text, op, begin, end_env or end; `spaced`: white space stood before it."""

    kind: str
    text: str
    spaced: bool = False


END = Token("end", "")


def group_digits(text: str, commas: bool) -> str:
    """`text` with digit groups joined: `7{,}425` and `1\\,000` and `1 000` always, `7,425` when `commas`, and
    then only outside brackets, where a comma separates."""
    if not any(c.isdigit() for c in text):
        return text
    # 1.234.567 and 1.234,56 and 1 234,56; a single 1.234 is a decimal
    text = _EUROPEAN.sub(lambda m: re.sub(r"[. ]", "", m.group()).replace(",", "."), text)
    if "'" in text:
        text = _APOSTROPHES.sub(lambda m: m.group().replace("'", ""), text)
    text = _LATEX_GROUPED.sub(lambda m: re.sub(r"\D", "", m.group()), text)
    text = _SPACE_GROUPED.sub(lambda m: m.group().replace(" ", ""), text)
    if not commas or "," not in text:
        return text

    def join(match: re.Match[str]) -> str:
        before = text[: match.start()]
        depth = sum(before.count(c) for c in _OPENERS) - sum(before.count(c) for c in _CLOSERS)
        depth += before.count("\\{") - before.count("\\}")
        depth += before.count("\\langle") - before.count("\\rangle")
        return match.group().replace(",", "") if depth <= 0 else match.group()

    return _COMMA_GROUPED.sub(join, text)


def argument(text: str, start: int) -> tuple[str, int]:
    """The braced (or single-character) argument at `start` and where it ends. Raises `Unreadable`."""
    while start < len(text) and text[start].isspace():
        start += 1
    if start >= len(text):
        raise Unreadable("a command without its argument")
    if text[start] != "{":
        return text[start], start + 1
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "{" and text[index - 1] != "\\":
            depth += 1
        elif text[index] == "}" and text[index - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[start + 1 : index], index + 1
    raise Unreadable("unbalanced braces")


def tokenize(text: str, commas: bool = True) -> list[Token]:
    """The tokens of a cleaned answer, `END` last. Raises `Unreadable` for text too long to be an answer."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"an answer of {len(text)} characters")
    tokens: list[Token] = []
    _scan(group_digits(text, commas), tokens)
    if len(tokens) > MAX_TOKENS:
        raise Unreadable(f"an answer of {len(tokens)} tokens")
    tokens.append(END)
    return tokens


def _scan(text: str, tokens: list[Token], depth: int = 0) -> None:
    if depth > 8:
        raise Unreadable("text commands nested too deeply")
    position, spaced = 0, False
    while position < len(text):
        match = _SCAN.match(text, position)
        assert match is not None and match.lastgroup is not None
        kind, found = match.lastgroup, match.group()
        position = match.end()
        if kind == "space":
            spaced = True
        elif kind == "bad":
            raise Unreadable(f"a number in programming notation: {found}")
        elif kind == "cmd":
            position, spaced = _command(text, found[1:], position, spaced, tokens, depth)
        else:
            if kind in ("rel", "power", "dots"):
                kind = "op"
            tokens.append(Token(kind, "^" if found == "**" else found, spaced))
            spaced = False


def _command(
    text: str, name: str, position: int, spaced: bool, tokens: list[Token], depth: int
) -> tuple[int, bool]:
    """Handle one backslash command; returns where to go on and whether space precedes what follows."""
    if name in ("quad", "qquad"):
        tokens.append(Token("cmd", "quad", True))
        return position, True
    if name == "\\":
        position = _ROW_SPACE.match(text, position).end()  # type: ignore[union-attr]
    if name in SPACE or name in (",", ";", ":", " ", ">", "\n", "!"):
        return position, spaced or name != "!"
    if name in SILENT:
        if text[position : position + 1] == "." and name in ("left", "right"):
            position += 1
        return position, spaced
    if name in SILENT_WITH_ARGUMENT:
        return argument(text, position)[1], spaced
    if name == "textcolor":
        return argument(text, position)[1], spaced
    if name in TEXT:
        inner, position = argument(text, position)
        _text(name, inner, spaced, tokens, depth)
        return position, True
    if name in ("begin", "end"):
        environment, position = argument(text, position)
        if environment in TRANSPARENT_ENVIRONMENTS:
            return position, True
        if name == "begin" and environment == "array":
            position = argument(text, position)[1]
        tokens.append(Token("begin" if name == "begin" else "end_env", environment, spaced))
        return position, False
    if name in FONTS:
        digits = _DIGITS_GROUP.match(text, position)
        if digits:  # "\\mathbf{110}_2"
            tokens.append(Token("num", digits[1], spaced))
            return digits.end(), False
        return position, spaced
    if name in ALIASES:
        tokens.append(Token("op", ALIASES[name], spaced))
        return position, False
    kind = "op" if name in ("{", "}", "%", "$", "|", "&", "#", "_") else "cmd"
    tokens.append(Token(kind, "\\" + name if kind == "op" else name, spaced))
    return position, False


_CONNECTIVE = re.compile(r"(.+\S)\s+(and|or)|(and|or)\s+(\S.*)", re.IGNORECASE | re.DOTALL)
_MATHLIKE = re.compile(r"[\d\\^_=+*/(){}<>|,$-]")


def _text(name: str, inner: str, spaced: bool, tokens: list[Token], depth: int) -> None:
    """A text command: mathematics inside is read as such, one letter is a symbol, words are a text token."""
    stripped = inner.strip(" \t\n~")
    if not stripped:
        return
    if stripped[0] == "-" and stripped[1:2].isalpha():
        stripped = stripped[1:]  # "10\\text{-inch}"
    bracketed = re.fullmatch(r"\(([^\W\d_]{2,20})\)", stripped)
    if bracketed:
        stripped = bracketed.group(1)
    split = _CONNECTIVE.fullmatch(stripped)
    if split:  # "hours and", "or x"
        for part in split.groups():
            if part:
                _text(name, part, True, tokens, depth + 1)
        return
    if len(stripped) == 1 and stripped.isalpha():
        # \text{m} behind a number is a unit; \mathrm{e} alone is a symbol
        tokens.append(Token("text" if name not in ("mathrm", "operatorname") else "name", stripped, spaced))
    elif _MATHLIKE.search(stripped) and not re.fullmatch(r"[^\W\d_][\w\s./^{}-]*", stripped):
        start = len(tokens)
        _scan(stripped, tokens, depth + 1)
        if len(tokens) > start:
            tokens[start] = Token(tokens[start].kind, tokens[start].text, True)
    else:
        tokens.append(Token("text", stripped, spaced or inner[0].isspace()))
