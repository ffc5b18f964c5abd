"""From the text of an answer to its tree: what can be said of it as a whole (delimiters around it, words that
announce it, a lettered option, a time, a date, a number in words), then the grammar (`verifiers.parser`).
"""

from __future__ import annotations

import re

from verifiers.lexer import MAX_CHARS, Token, tokenize
from verifiers.nodes import Choice, Clock, Node, Text, depth
from verifiers.numerals import IN_WORDS, date, in_figures, number_word
from verifiers.parser import Parser
from verifiers.tables import AND_WORDS, FUNCTIONS, GREEK, MEANING, OR_WORDS, is_product
from verifiers.text import Unreadable, clean, words
from verifiers.units import read_unit

MAX_TREE_DEPTH = 80
_CHOICE = re.compile(
    r"^(?:the |la |el |die )?(?:option|choice|answer|letter|opción|letra|lettre)?\s*"
    r"(?:\((?P<a>[A-Za-z])\)|(?P<b>[A-Z])(?:[.):]|\s*$))[.:]?\s*(?P<rest>.*)$",
    re.DOTALL | re.IGNORECASE,
)
_MORE_CHOICES = re.compile(
    r"^(?:or|and|not|is|but|if)\b|^[,/&]|\([A-J]\)|^[A-J][.:)]|\b(?:or|and)\s+\(?[A-J]\b"
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox|textit|bf|rm)\s*(?=\{)")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*([ap])?\.?\s?(m)?\.?", re.IGNORECASE)
_FOR_INTEGERS = re.compile(
    r"(?<![\s,])(?:[\s,]|\\text\s*\{)+(?:"
    r"(?:for|where)\s+(?:(?:some|any|all|every|each)\s+)?integers?\s*\}?\s*\$?([a-z])\}?\$?|"
    r"where\s*\}?\s*\$?([a-z])\$?\s*(?:\\text\s*\{\s*)?is an(?:y)? integer\}?)\s*$"
)
_BASED = re.compile(r"^\s*\$?(?:\\left)?\((\d+)(?:\\right)?\)_(?=\{?\d)")
_TIMES_TEN = re.compile(r"(\d)\s*[xX]\s*10\s*\^")
_WITH_OPTION = re.compile(
    r"(?<=\S)\s*\\text\s*\{\s*\((?:option|choice|answer)\s+[A-J]\)\s*\}$", re.IGNORECASE
)
_EXPLAINED = re.compile(r"(.*[\d}$%])\s*\(([^\W\d_][^()\d\\]{1,30})\)")
_WORDS = re.compile(r"[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*")
_WHOLE_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox|textit|textrm)\s*\{([^{}\\$]+)\}")
_SYSTEM = re.compile(
    r"\\left\s*\\\{\s*\\begin\{(array|aligned|matrix)\}(?:\{[lcr| ]*\})?(.*?)\\end\{\1\}\s*\\right\s*\.",
    re.DOTALL,
)
_ALIGNED = re.compile(
    r"\\begin\{(align|aligned|split|gather|gathered|eqnarray)(\*?)\}(.*)\\end\{\1\2\}", re.DOTALL
)
_MATH_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def strip_math(text: str) -> str:
    """`text` without the dollar signs or brackets around all of it, and without outer white space."""
    text = text.strip()
    while True:
        for opener, closer in _MATH_DELIMITERS:
            inner = text[len(opener) : len(text) - len(closer)]
            if (
                len(text) > len(opener) + len(closer)
                and text.startswith(opener)
                and text.endswith(closer)
                and opener not in inner
                and not (opener == "$" and inner.endswith("\\"))
            ):
                text = inner.strip()
                break
        else:
            return text


def parse(text: str, commas: bool = True) -> Node:
    """The syntax tree of an answer. With `commas`, `7,425` outside brackets is a number, else a list.

    Raises `Unreadable` with the reason when the text is not an answer that this grammar describes.
    """
    return parse_clean(clean(text), commas)


def parse_clean(text: str, commas: bool = True) -> Node:
    """`parse` of text that is already in the lexer's characters."""
    if len(text) > MAX_CHARS:
        raise Unreadable(f"an answer of {len(text)} characters")
    text = _BASED.sub(r"\1_", text.replace("{:}", ":").replace("\\Pr", "\\mathbb{P}"))
    text = _FOR_INTEGERS.sub(lambda m: rf", {m[1] or m[2]} \in \mathbb{{Z}}", text)
    text = _CONDITION.sub(r", \1", _unannounced(_trimmed(strip_math(_aligned(text)))))
    if not text:
        raise Unreadable("empty")
    text = _TIMES_TEN.sub(r"\1\\times 10^", _explained(text))
    whole = _WHOLE_TEXT.fullmatch(text)
    plain = whole.group(1).strip() if whole else text
    day = date(plain)
    if day is not None:
        return Text(day)
    if _WORDS.fullmatch(plain):
        if plain.casefold() in IN_WORDS:
            return IN_WORDS[plain.casefold()]
        figures = in_figures(plain)
        if figures is not None:
            return parse_clean(figures)
    clock = _CLOCK.fullmatch(re.sub(r"\\(?:text|mathrm)\s*\{\s*([^{}]*)\}", r" \1", text).strip())
    if clock and _is_clock(clock):
        hours, minutes, seconds, half, _ = clock.groups()
        return Clock(f"{int(hours)}:{minutes}:{seconds or '00'}{(half or '').lower()}")
    choice = _choice(text)
    if choice is not None:
        return choice
    if _WORDS.fullmatch(text) and _in_words(text):
        return Text(words(text))
    tokens = _inline_math(tokenize(text, commas))
    tree = Parser(tokens).answer()
    if depth(tree) > MAX_TREE_DEPTH:
        raise Unreadable("nested too deeply")
    return tree


_CONDITION = re.compile(
    r"(?<![\s,])(?:[\s,]|\\[,; ]|\\q?quad)*"
    r"(?:\\left)?\(([^()]{1,20}\\in(?![a-z])[^()]{1,30}?)(?:\\right)?\)\s*$"
)
_ARROW = re.compile(
    r"^(?:\\(?:therefore|implies|Rightarrow|Longrightarrow|rightarrow|to)(?![a-zA-Z])|=>|->)\s*"
)
_ROUGHLY = re.compile(r"^\\text\s*\{\s*(?:approximately|approx\.?|exactly)\s*\}")
_NAMED = re.compile(r"^([A-Za-z]+(?: [A-Za-z]+){0,6})\s*[=:]\s*(?=\S)(?!=)")
_IN_WORDS = re.compile(r"^\\text\s*\{([^{}]{1,60}?)(?:\bis|\bare|\bequals|:)\s*:?\s*\}\s*(?=\S)")


def _unannounced(text: str) -> str:
    """`text` without an arrow, or words that only name the value, before it ("Total = 13")."""
    text = _ROUGHLY.sub("", _ARROW.sub("", text))
    for announcement in (_NAMED, _IN_WORDS):
        match = announcement.match(text)
        if match is None:
            continue
        named = match.group(1).casefold().split()
        if any(_is_word(word) for word in named) and not any(
            word in MEANING or word in FUNCTIONS or word in GREEK or word in OR_WORDS for word in named
        ):
            return text[match.end() :].strip()
    return text


def _explained(text: str) -> str:
    """`42 (forty-two)` as 42, `10 (ways)` as `10 ways`."""
    text = _WITH_OPTION.sub("", text)
    match = _EXPLAINED.fullmatch(text) if text.endswith(")") else None
    if match is None:
        return text
    figures, said = match.groups()
    if str(number_word(words(said))) == figures:
        return figures
    return text if read_unit(said) is None or len(said.split()) > 2 else f"{figures} \\text{{{said}}}"


def _aligned(text: str) -> str:
    """Aligned lines without their tabs; a line that begins with `=` goes on with the one before."""
    text = _SYSTEM.sub(r"\\begin{cases}\2\\end{cases}", text)
    return _ALIGNED.sub(lambda m: re.sub(r"\\\\\s*(?==)", " ", m.group(3).replace("&", "")), text)


def _is_word(word: str) -> bool:
    """Whether letters are a word rather than a product of variables."""
    return word in ("sum", "ans", "age", "gcd", "lcm") or (len(word) > 3 and bool(set(word) & set("aeiou")))


def _trimmed(text: str) -> str:
    """`text` without trailing punctuation and spacing; dots that mean "and so on" stay."""
    text = re.sub(r"(?<!\s)(?:\\[,;:!]|\\ |\\\\|\\q?quad|\s)+$", "", text.rstrip())
    if re.search(r"(?<!\\)(?:\\\\)*\\$", text):
        text = text[:-1].rstrip()  # what is left of a "\ " at the end
    text = re.sub(r"^(?:\\[,;:!]|\\ |\\q?quad\b|\s)+", "", text)
    return text if text.endswith(("...", "\\ldots", "\\dots")) else text.rstrip(" .;,")


def _inline_math(tokens: list[Token]) -> list[Token]:
    """Without the dollar signs of mathematics inside text; a dollar sign before a number is money."""
    marks = [i for i, t in enumerate(tokens) if t.kind == "op" and t.text in ("$", "\\$")]
    plain = [i for i in marks if tokens[i].text == "$"]
    if len(plain) >= 2 and len(plain) % 2 == 0:
        return [t for i, t in enumerate(tokens) if i not in set(plain)]
    return tokens


def _is_clock(match: re.Match[str]) -> bool:
    hours, minutes, seconds, half, m = match.groups()
    timely = int(hours) <= 24 and int(minutes) < 60 and (half is None) == (m is None)
    return timely and bool(half or seconds or minutes[0] == "0" or int(minutes) > 9 and len(hours) == 2)


def _choice(text: str) -> Choice | None:
    plain = _TEXT_COMMAND.sub("", text)
    if plain != text:
        plain = re.sub(r"\{([^{}]*)\}", r"\1", plain, count=1).strip()
    match = _CHOICE.match(plain.strip())
    if match is None:
        return None
    letter = match["a"] or match["b"]
    rest = match["rest"].strip()
    if not rest:
        if match["a"] is None and not letter.isupper():
            return None
        return Choice(letter.upper()) if match["a"] or letter in "ABCDFGHJK" else None
    if (
        letter.upper() not in "ABCDEFGHIJ"
        or (not letter.isupper() and ")" not in plain[:3])
        or re.match(r"[\^_=+*/!')\]<>-]", rest)
    ):
        return None
    if match["b"] and plain.strip()[1] not in ".):":
        return None
    if _MORE_CHOICES.search(rest):
        raise Unreadable("several letters")
    try:
        return Choice(letter, parse_clean(rest))
    except Unreadable:
        return Choice(letter, Text(words(rest)))


def _in_words(text: str) -> bool:
    """Whether letters and spaces are words rather than mathematics."""
    runs = re.findall(r"[^\W\d_]+", text)
    if len(runs) == 1:
        return len(text) > 1 and not is_product(text)
    known = FUNCTIONS.keys() | GREEK | OR_WORDS | AND_WORDS | {"pi"}
    return (
        any(len(run) > 2 for run in runs)
        and not known & {run.casefold() for run in runs}
        or (len(runs[0]) > 1 and not known & set(runs))
    )
