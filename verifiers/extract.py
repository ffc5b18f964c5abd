"""What a completion states as its answer.

A *final statement* is a box (`\\boxed{…}`, `\\fbox{…}`), an `<answer>` tag, a `####` line, or a phrase
such as "the answer is …" in one of many languages; the last one counts. Without any, the whole text
when it is nothing but an answer, else what the last line concludes. What is inside thinking tags is not
stated. Ambiguity is no answer: a hedge ("84 or 85" in prose), a negation ("not 84"), an empty box.
"""

from __future__ import annotations

import re

from verifiers.boxes import Extraction, find_boxes, from_boxes
from verifiers.numerals import find_date
from verifiers.phrases import (
    AFTER_REFUSES,
    CLAUSE_ENDS,
    CONCLUDES,
    DENIED,
    HEDGE,
    JSON_ANSWER,
    NEGATION_BEFORE,
    PHRASE,
    PHRASE_AFTER,
    RESULT,
    ROUNDED,
    TAKEN_BACK,
)
from verifiers.tables import FUNCTIONS, GREEK, MEANING, is_product
from verifiers.units import KNOWN, read_unit, singular
from verifiers.visible import without_hidden, without_thinking

_MATH_NAMES = FUNCTIONS.keys() | GREEK | {"pi", "inf", "infinity", "oo"}
MAX_TAIL = 20_000  # characters from the end in which phrases and final lines are looked for
_TAG = re.compile(r"<(answer|final_answer|final|ans|solution)>(.*?)</\1>", re.IGNORECASE | re.DOTALL)
_HASHES = re.compile(r"^[ \t]*#{4,}[ \t]*(.+)$", re.MULTILINE)
_MATH_SPAN = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$(?:(?=\S)([^$\n]*?\S)|\s+([^$\n]+?))(?<!\\)\$(?!\d)|\\\((.+?)\\\)|\\\[(.+?)\\\]",
    re.DOTALL,
)
_BOILERPLATE = re.compile(
    r"(?:i hope (?:it|this) (?:is correct|helps)|q\.?e\.?d\.?|∎|\\blacksquare|done)[.!]*\s*$", re.I
)


def candidates(text: str) -> list[str]:
    """Every answer a completion puts in a box, in order; without boxes, what `extract` finds."""
    boxes = [box.content.strip() for box in find_boxes(text) if box.content.strip()]
    if boxes:
        return boxes
    answer = extract(text).answer
    return [] if answer is None else [answer]


def extract(text: str) -> Extraction:
    """The final answer of a completion. Pure, and linear in the length of the text."""
    visible = without_thinking(text)
    if visible is None:
        return Extraction(None, "the thinking never ends")
    visible = without_hidden(visible).strip()
    if not visible:
        return Extraction(None, "nothing is stated")
    boxes = find_boxes(visible)
    said = _phrase(visible)
    if boxes and (said is None or said[0] <= boxes[-1].end):
        return from_boxes(visible, boxes)
    if said is not None:
        start, content, how = said
        found = _from_phrase(content, how)
        if found.answer is not None or not boxes:
            return found
        return from_boxes(visible, boxes)
    return _from_end(visible)


# -- phrases -------------------------------------------------------------------------------------------


def _phrase(text: str) -> tuple[int, str, str] | None:
    """(position, content, kind) of the last `<answer>` tag, `####` line or answer phrase."""
    found: tuple[int, str, str] | None = None
    offset = max(0, len(text) - MAX_TAIL)
    tail = text[offset:]
    for match in _TAG.finditer(tail):
        found = (match.start(), match.group(2), "answer tag")
    for match in _HASHES.finditer(tail):
        if found is None or match.start() > found[0]:
            found = (match.start(), match.group(1), "####")
    for match in JSON_ANSWER.finditer(tail):
        if found is None or match.start() > found[0]:
            found = (match.start(), match.group(1), "JSON")
    for match in (*PHRASE.finditer(tail), *RESULT.finditer(tail)):
        if found is None or match.start() >= found[0]:
            content = tail[match.end() :]
            if content.strip() and not _inside(found, match.start(), tail):
                if DENIED.search(tail, max(0, match.start() - 80), match.start()):
                    content = ""
                found = (match.start(), content, "phrase")
    for match in PHRASE_AFTER.finditer(tail):
        if found is None or match.start() > found[0]:
            found = (match.start(), match.group(1), "phrase")
    if found is None:
        return None
    return offset + found[0], found[1], found[2]


def _inside(found: tuple[int, str, str] | None, position: int, tail: str) -> bool:
    return found is not None and found[2] == "answer tag" and position < found[0] + len(found[1]) + 8


def _from_phrase(content: str, how: str) -> Extraction:
    content = content.strip()
    if how == "answer tag":
        boxes = find_boxes(content)
        if boxes:
            return from_boxes(content, boxes)
        said = _phrase(content)
        if said is not None:
            return _from_phrase(said[1], "phrase")
        if "\n" in content or len(content) > 100:
            return _from_end(content)
        return Extraction(content or None, how)
    lines = [line for line in content.splitlines() if line.strip(" *#_:`>-")]
    if not lines:
        return Extraction(None, "a phrase without an answer")
    line = lines[0].strip()
    if line in ("$$", "\\[") and len(lines) > 1:
        line = lines[1]
    elif line.startswith(("$$", "\\[", "\\begin")) or line.count("$") % 2:
        line = _display(content) or line
    answer = conclude(line, strict=False)
    last_words = sentence(strip_markup(line))[-12:]
    if answer is None or TAKEN_BACK.match(content[content.find(last_words) + len(last_words) :]):
        return Extraction(None, "hedged or negated")
    if "$" not in line and "\\" not in line and not _looks_like_answer(answer):
        prose = _from_prose(answer, how)
        return prose if prose.answer is not None else Extraction(answer, how)
    return Extraction(answer, how)


def _display(content: str) -> str | None:
    """Displayed mathematics that begins the content, over several lines."""
    match = re.match(
        r"\s*(\$\$.+?\$\$|\\\[.+?\\\]|\\begin\{(\w+)\}.+?\\end\{\2\}|\$[^$]+\$)(?![\w^!+*/\\-])",
        content,
        re.DOTALL,
    )
    return match.group(1) if match else None


# -- lines ---------------------------------------------------------------------------------------------


def strip_markup(line: str) -> str:
    """A line without Markdown emphasis, list marks and outer white space."""
    line = re.sub(r"\*\*|__|`+", "", line).strip()
    line = re.sub(r"^([*_]|==)(\S(?:.*\S)?)\1(?=[.,]?$)", r"\2", line)
    return re.sub(r"^(?:-\s+(?![\d.\\])|[*•>]\s+|#{1,6}\s+)+", "", line).strip()


_SENTENCE_END = re.compile(r"(?<=[^\s.])(?<!\b[A-Z])[.!](?=\s+[A-Z\\$])|(?<=[^\s.])\.\s*$|。(?=.)|。\s*$")


def sentence(line: str, last: bool = False) -> str:
    """The first (or the last) sentence of a line, without its full stop."""
    ends = list(_SENTENCE_END.finditer(line))
    if not ends:
        return line
    if not last:
        return line[: ends[0].start()]
    inner = [m for m in ends if line[m.end() :].strip()]
    start = inner[-1].end() if inner else 0
    stop = ends[-1].start() if ends[-1] not in inner else len(line)
    return line[start:stop]


_OPENERS = re.compile(
    r"^(?:(?:so|thus|hence|therefore|then|that|also|donc|somit|daher|luego|quindi|portanto|"
    r"approximately|exactly)\b,?|"
    r"(?:所以|因此|于是|故|即|则|可得|解得|得|よって|したがって|따라서)|[:=,，、\s]+)+",
    re.IGNORECASE,
)


def conclude(line: str, strict: bool) -> str | None:
    """The answer that a line states, or None when it hedges, negates, or (`strict`) does not conclude."""
    line = ROUNDED.sub("", sentence(strip_markup(line), last=strict)).strip().rstrip(" .,;")
    line = _OPENERS.sub("", line)
    line = re.sub(r"(?<=[\d$)}])\s*(?:です|である|だ|となる|입니다|이다|이에요)$", "", line)
    if not line:
        return None
    if HEDGE.search(line):
        return None
    spans = [next(g for g in m.groups() if g is not None).strip() for m in _MATH_SPAN.finditer(line)]
    if spans:
        return _from_spans(line, spans, strict)
    line = re.sub(r"^[\"“'](.*)[\"”']$", r"\1", line)
    cut = line if strict else CLAUSE_ENDS.split(line, maxsplit=1)[0].strip(" ,")
    if re.match(r"\s*[,;]?\s*but\b.*\d", line[len(cut) :]):
        return None
    if re.match(r"(?:not|never|neither|nicht|no es|pas|不是)\b", cut, re.IGNORECASE):
        return None
    return cut or None


_WORDS_BEHIND = re.compile(r"\s*([^\W\d_]+(?:\s[^\W\d_]+){0,2}(?:/[^\W\d_]+)?)[\s.,;:!]*\Z")


def _harmless(phrase: str) -> bool:
    """Words behind a formula that are neither a unit nor change its meaning."""
    return read_unit(phrase) is None and not MEANING & set(phrase.casefold().split())


def _from_spans(line: str, spans: list[str], strict: bool) -> str | None:
    """The answer of a line that has mathematics between dollar signs."""
    if re.match(r"\(?[A-J][).:]\s*\S", line):
        return line  # a lettered option with its text
    rest = _MATH_SPAN.sub("\0", line)
    words = rest.replace("\0", " ").strip(" .,;:!")
    first, last = rest.find("\0"), rest.rfind("\0")
    if re.search(r"\0[\^_!\d]|[\d^]\0", rest):
        return None  # "$84$^2"
    if NEGATION_BEFORE.search(rest[:last]) and not CONCLUDES.search(rest[:last]):
        return None
    between = rest[first + 1 : last]
    if not words:
        return ", ".join(spans)
    if len(spans) > 1 and re.fullmatch(r"(?:\0|[\s,;]|and|or|und|et|y|和|或)*", between):
        if first == 0 or CONCLUDES.search(rest[:first]) or not strict:
            joiner = " or " if re.search(r"\bor\b|或", between) else ", "
            return joiner.join(spans)
        return None
    if not strict and first <= 1 and len(spans) > 1:
        return spans[0]
    behind = _WORDS_BEHIND.match(rest, last + 1)
    unit = f" \\text{{{behind.group(1)}}}" if behind and not _harmless(behind.group(1)) else ""
    if len(spans) == 1:
        return spans[0] + unit
    if CONCLUDES.search(rest[:last]):
        return spans[-1] + unit
    return None


def _from_end(text: str) -> Extraction:
    """Without any final statement: the whole text if it is one line, else what the last line concludes."""
    if len(text) <= 400 and "\n" not in text.strip():
        return _from_line(text.strip(), "whole text")
    if (
        len(text) <= 1000
        and re.match(r"\s*(?:\$|\\\[|\\begin|\\\()", text)
        and not re.search(r"\n\s*\n", text)
    ):
        return Extraction(text.strip(), "whole text")
    tail = _BOILERPLATE.sub("", text[-MAX_TAIL:])
    lines = [line for line in tail.splitlines() if line.strip(" *#_`>-=")]
    if not lines:
        return Extraction(None, "nothing is stated")
    display = re.search(r"(\$\$[^$]+\$\$|\\\[(?:(?!\\\[).)+?\\\])\s*[.]?\s*$", tail, re.DOTALL)
    if display and lines[-1].strip() in ("$$", "\\]", "$$.", "\\]."):
        return Extraction(display.group(1), "last line")
    return _from_line(lines[-1].strip(), "last line")


_BARE_TEXT = re.compile(r"[^\W\d_](?:[^\W\d]|[' -]){0,40}[.!]?")
_RIGHT_CHOICE = re.compile(r"(?<!\w)\(?([A-J])\)? is (?:the )?(?:correct|right|best)\b")
_NOTHING = re.compile(r"\b(?:does not exist|doesn't exist|no (?:real )?solutions?)\.?$", re.IGNORECASE)
_CHOSEN = re.compile(r"(?<!\w)\(([A-J])\)|\b(?:option|choice|select|choose|pick)\s+([A-J])\b", re.IGNORECASE)
_CLOCK_TIME = re.compile(r"(?<![\d:])\d{1,2}:[0-5]\d(?:\s*[ap]\.?m\b\.?)?(?![\w:\\^}])", re.IGNORECASE)
_LONE_NUMBER = re.compile(r"(?<![\w.\\^_{-])[-+−]?(?:\\?\$)?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?%?(?![\w\\^{])")


def _from_line(line: str, how: str) -> Extraction:
    stripped = ROUNDED.sub("", strip_markup(line))
    day = find_date(stripped)
    if _looks_like_answer(stripped) or day == stripped.rstrip("."):
        return Extraction(stripped, how)
    concluded = conclude(stripped, strict=True)
    if concluded is None:
        return Extraction(None, f"{how}: hedged, negated or inconclusive")
    if concluded != sentence(stripped).strip().rstrip(" .,;"):
        if _looks_like_answer(concluded):
            return Extraction(concluded, how)
    return _from_prose(concluded, how)


_SENTENCE_WORDS = re.compile(
    r"\b(?:is|are|was|the|so|we|have|get|equals?|be|must|not|then|thus|hence|(?-i:I)|choose|select|pick|therefore)\b",
    re.IGNORECASE,
)


def _looks_like_answer(line: str) -> bool:
    """Whether a line can be an answer as it stands: no sentence, no words before a number."""
    line = re.sub(r"^\(?[A-J][.):]\s+", "", line)
    plain = re.sub(r"\\(?:text|mathrm|textbf|operatorname)\s*\{[^{}]*\}", "", line)
    plain = re.sub(r"\\[a-zA-Z]+", "\\\\", plain)
    found = [m for m in re.finditer(r"[^\W\d_]{2,}", plain) if not is_product(m.group())]
    if re.search(r"[.!?]\s+[A-Z]", plain) or len(found) > 3 or _SENTENCE_WORDS.search(plain):
        return False
    first = re.search(r"[\d\\=$]", plain)
    if first is None:
        return True
    if plain[first.start()] == "=":
        return not found or not (CONCLUDES.search(plain[: first.start()]) or not plain.isascii())
    return all(m.start() > first.start() or m.group() in _MATH_NAMES for m in found)


_AMOUNT = re.compile(
    r"((?:[-+−]\s?)?(?:\\?\$)?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?)(%?)"
    r"((?:[\s,]+[^\W\d_](?:[^\W\d_]|['’²³/.-])*)*)[.!]?"
)
_HARMLESS = frozenset("to over through up so that which when while per".split())
_NO_UNITS = frozenset(
    "a an of in at on for from to per each every left such altogether total over because since as that and "
    "this the it he she they we more with".split()
)


_IS = re.compile(r"\b(?:is|are|was|be|equals?)\b|['’]s", re.IGNORECASE)
_SCALED_BEFORE = re.compile(
    r"(?:\b(?:half|twice|double|triple|thirds?|quarters?|percent|times|multiple|factor|minus|plus|mod)\b|%)"
    r"(?:\s+of)?\s*\Z",
    re.IGNORECASE,
)


def _amount(text: str) -> str | None:
    """The number that `text` begins with and its unit, without the words that only tell its story ("160
    minutes to download", "18 a day"). None when words change the meaning, or more than words follow."""
    match = _AMOUNT.fullmatch(text)
    if match is None:
        return None
    number, percent, behind = match.groups()
    words = behind.replace(",", " ").split()
    if (MEANING - _HARMLESS) & {word.casefold() for word in words} or "or" in words:
        return None
    for length in range(min(4, len(words)), 0, -1):
        if all(singular(word) in KNOWN or word in ("per", "square", "cubic") for word in words[:length]):
            return f"{number}{percent} {' '.join(words[:length])}"
    if not words or words[0].casefold() in _NO_UNITS:
        return number + percent
    return f"{number}{percent} {words[0]}"


def _from_prose(line: str, how: str) -> Extraction:
    """The number that a sentence concludes with, when there is exactly one way to read it."""
    right = _RIGHT_CHOICE.search(line)
    if right:
        return Extraction(right.group(1), how)
    verbs = list(CONCLUDES.finditer(line))
    if re.search(r"\d", line):  # "to get there" concludes nothing
        verbs = [v for v in verbs if re.search(r"\d", line[v.end() :]) or _IS.search(v.group())]
    verb = verbs[-1] if verbs else None
    if verb is not None and not NEGATION_BEFORE.search(line[: verb.end()]):
        tail = _OPENERS.sub("", line[verb.end() :].strip())
        shorter = CLAUSE_ENDS.split(tail, maxsplit=1)[0].strip(" ,")
        if not re.search(r"\d", tail[len(shorter) :]):
            tail = shorter
        tail = _amount(tail) or tail
        if tail and _looks_like_answer(tail):
            return Extraction(tail, how)
    if "=" in line:
        last = line.rpartition("=")[2].strip()
        amount = _amount(last)
        if amount is not None and not _looks_like_answer(last):
            return Extraction(amount, how)
        if _looks_like_answer(last):
            return Extraction(line if _looks_like_answer(line) else last, how)
    numbers = list(_LONE_NUMBER.finditer(line))
    if len(numbers) == 1 and not NEGATION_BEFORE.search(line[: numbers[0].start()]):
        amount = _amount(line[numbers[0].start() :].strip(" .,!"))
        scaled = _SCALED_BEFORE.search(line, 0, numbers[0].start())
        if amount is not None and not scaled and not AFTER_REFUSES.match(line[numbers[0].end() :]):
            if verb is not None or not line[: numbers[0].start()].strip():
                return Extraction(amount, how)
    day = find_date(line)
    if day is not None and not NEGATION_BEFORE.search(line[: line.find(day)]):
        return Extraction(day, how)
    clocks = _CLOCK_TIME.findall(line)
    if len(clocks) == 1 and len(numbers) <= 2 and not NEGATION_BEFORE.search(line[: line.find(clocks[0])]):
        return Extraction(clocks[0], how)
    letters = set(_CHOSEN.findall(line))
    if len(letters) == 1:
        return Extraction("".join(letters.pop()), how)
    verdict = re.match(r"(yes|no|true|false)\b[,.;:!—-]", line, re.IGNORECASE)
    if verdict and not re.search(r"\d", line):
        return Extraction(verdict.group(1), how)
    if _BARE_TEXT.fullmatch(line) and (_NOTHING.search(line) or not _SENTENCE_WORDS.search(line)):
        return Extraction(line, how)
    return Extraction(None, f"{how}: no answer that stands out")
