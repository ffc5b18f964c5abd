"""The grammar of an answer, by recursive descent: lists of relations between set expressions.

    answer    = choice | statement { ("," | ";" | "or" | "and") statement }
    statement = side { relation side }
    side      = arith { ("∪" | "∩" | "\\setminus") arith } | ratio
    arith     = term { ("+" | "-" | "±" | "∓") term }          (terms and below: `verifiers.terms`)

Text never becomes code: a name that is not in `verifiers.tables` is a symbol, a command that is not is an
error. What cannot be read raises `Unreadable`; depth and length are bounded.
"""

from __future__ import annotations

import re

from verifiers.lexer import Token, tokenize
from verifiers.nodes import (
    Builder,
    Choice,
    Clock,
    Matrix,
    Node,
    Ratio,
    Rel,
    Seq,
    SetOp,
    Sym,
    Text,
    depth,
)
from verifiers.tables import AND_WORDS, ENVIRONMENTS, FUNCTIONS, GREEK, MEANING, OR_WORDS, RELATIONS
from verifiers.terms import Terms
from verifiers.text import Unreadable, clean, words

MAX_TREE_DEPTH = 80
_SETS = {"cup": "cup", "cap": "cap", "setminus": "setminus", "backslash": "setminus"}
_IMPLIES = frozenset({"implies", "Rightarrow", "Longrightarrow", "iff", "Leftrightarrow", "therefore",
                      "Longleftrightarrow", "longrightarrow", "rightarrow"})  # fmt: skip
_CHOICE = re.compile(
    r"^(?:option|choice|answer)?\s*"
    r"(?:\((?P<a>[A-Za-z])\)|(?P<b>[A-Z])(?:[.):]|\s*$))[.:]?\s*(?P<rest>.*)$",
    re.DOTALL | re.IGNORECASE,
)
_MORE_CHOICES = re.compile(
    r"^(?:or|and|not|is|but|if)\b|^[,/&]|\([A-J]\)|^[A-J][.:)]|\b(?:or|and)\s+\(?[A-J]\b"
)
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|textrm|mbox|textit|bf|rm)\s*(?=\{)")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?\s*([ap])?\.?\s?(m)?\.?", re.IGNORECASE)
_SHORT_WORDS = frozenset(
    "no on at as an am by my us we to so of if in is it he me be do go up or hi ok".split()
)
_MATH_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


class Parser(Terms):
    """One parse of one token stream."""

    def answer(self) -> Node:
        node = self.items("", "")
        if self.peek().kind != "end":
            raise Unreadable(f"unexpected {self.peek().text!r}")
        return node

    # -- lists -----------------------------------------------------------------------------------------

    def items(self, opened: str, closers: str) -> Node:
        """Comma-separated statements up to a closer (not consumed). Bare (`opened` empty) lists may also be
        joined by "or" and "and"; a single item is returned as itself."""
        found = [self.statement()]
        joined = ""
        while True:
            separator = self.separator()
            if separator is None:
                break
            joined = separator if separator != "," or not joined else joined
            if self.peek().kind == "end" or (closers and self.peek().text in closers):
                if joined != ",":
                    raise Unreadable(f"nothing after {joined!r}")
                if opened == "(":
                    raise Unreadable("a trailing comma in brackets")
                break
            again = self.separator()  # "3, and 4"
            joined = again if again not in (None, ",") else joined
            found.append(self.statement())
        if opened or len(found) > 1:
            return Seq(opened, "", tuple(found), joined or ",")
        return found[0]

    def separator(self) -> str | None:
        """Consume and name a separator: `,`, `or`, `and`, `then` (an implication); None if there is none."""
        token = self.peek()
        word = token.text.casefold()
        if token.kind == "op" and token.text in (",", ";"):
            self.next()
            return ","
        if token.kind == "cmd" and token.text in ("lor", "vee", "land", "wedge", "\\", "quad"):
            self.next()
            return {"lor": "or", "vee": "or", "\\": ",", "quad": ","}.get(token.text, "and")
        if token.kind == "cmd" and token.text in _IMPLIES:
            self.next()
            return "then"
        if token.kind == "text" or (token.kind == "name" and len(token.text) > 1) or word in ("和", "或"):
            bare = word.strip(" ,")
            if bare in OR_WORDS:
                self.next()
                return "or"
            if bare in AND_WORDS and (token.kind == "text" or bare not in ("y", "e")):
                self.next()
                return "and"
            if token.kind == "text" and not bare:
                self.next()
                return ","
        return None

    def statement(self) -> Node:
        self.enter()
        items, ops = [], []
        if self.relation_ahead() not in (None, "in"):
            # "> 84", "= 84", "≈ 84": nothing on the left
            lone = self.relation() or ""
            if lone in ("=", "~"):
                node = self.statement()
                self.leave()
                return node
            self.leave()
            return Rel((Sym("?"), self.side()), (lone,))
        items.append(self.side())
        while (op := self.relation()) is not None:
            ops.append(op)
            items.append(self.side())
        self.leave()
        return Rel(tuple(items), tuple(ops)) if ops else items[0]

    def relation_ahead(self) -> str | None:
        token = self.peek()
        if token.kind == "op":
            doubled = {"<=": "<=", ">=": ">=", "!=": "!=", "<>": "!=", ":=": "=", "==": "="}
            return doubled.get(token.text) or (token.text if token.text in ("=", "<", ">") else None)
        if token.kind == "cmd" and token.text in RELATIONS and token.text not in ("mid", "to"):
            return RELATIONS[token.text]
        if token.kind == "cmd" and token.text == "not":
            return "!=" if self.peek(1).text == "=" else None
        return None

    def relation(self) -> str | None:
        op = self.relation_ahead()
        if op is not None:
            if self.next().text == "not":
                self.next()
        return op

    # -- sets ------------------------------------------------------------------------------------------

    def side(self) -> Node:
        left = self.ratio()
        while True:
            token = self.peek()
            if token.kind == "cmd" and token.text in _SETS:
                op = _SETS[self.next().text]
            elif token.kind == "name" and token.text == "U" and token.spaced and isinstance(left, Seq):
                self.next()  # "[0, 1] U [2, 3]"
                op = "cup"
            else:
                return left
            left = SetOp(op, left, self.ratio())

    def ratio(self) -> Node:
        parts = [self.arith()]
        while self.peek().text.strip() in (":", "colon", "to") and not self.in_builder:
            self.next()
            parts.append(self.arith())
        return Ratio(tuple(parts)) if len(parts) > 1 else parts[0]

    def bracketed(self) -> Node:
        """`( … )`, `[ … )` and the like: a group, a tuple or an interval."""
        opener = self.next().text
        self.enter()
        builder, self.in_builder = self.in_builder, False
        if self.peek().text in (")", "]") and self.peek().kind == "op":
            inner: Node = Seq(opener, "", ())
        else:
            inner = self.items(opener, ")]")
        self.in_builder = builder
        closer = self.next()
        if closer.kind != "op" or closer.text not in (")", "]"):
            raise Unreadable(f"{opener!r} is not closed")
        self.leave()
        assert isinstance(inner, Seq)
        if len(inner.items) == 1 and opener == "(" and closer.text == ")":
            return inner.items[0]
        return Seq("(" if opener == "(" else "[", closer.text, inner.items, inner.joined)

    def angled(self) -> Node:
        self.next()
        inner = self.items("<", "")
        if self.next().text not in ("rangle", ">"):
            raise Unreadable("an angle bracket is not closed")
        assert isinstance(inner, Seq)
        return Seq("<", ">", inner.items)

    def braced_set(self) -> Node:
        """`\\{ … \\}`: a set by its elements or by a condition."""
        opener = self.next().text
        closer = "\\}" if opener == "\\{" else "}"
        self.enter()
        if self.peek().text == closer:
            self.next()
            self.leave()
            return Seq("{", "}", ())
        outer, self.in_builder = self.in_builder, True
        inner = self.items("{", closer)
        assert isinstance(inner, Seq)
        if self.peek().text in ("|", "\\|", "mid", ":", "colon", "vert"):
            self.next()
            conditions = self.items("(", closer)
            assert isinstance(conditions, Seq)
            inner_node: Node = Builder(inner.items[0], conditions.items)
            if len(inner.items) != 1:
                raise Unreadable("a set builder with several heads")
        else:
            inner_node = Seq("{", "}", inner.items)
        self.in_builder = outer
        if self.next().text != closer:
            raise Unreadable("a set is not closed")
        self.leave()
        return inner_node

    def environment(self) -> Node:
        """`\\begin{pmatrix} … \\end{pmatrix}` and its kin."""
        name = self.next().text
        if name not in ENVIRONMENTS:
            raise Unreadable(f"unknown environment {name!r}")
        self.enter()
        rows: list[tuple[Node, ...]] = []
        cells: list[Node] = []
        kind = ENVIRONMENTS[name]
        while True:
            token = self.peek()
            if token.kind == "end":
                raise Unreadable(f"environment {name!r} is not closed")
            if token.kind == "end_env" or (token.kind == "cmd" and token.text == "\\"):
                self.next()
                if token.kind == "end_env" and token.text != name:
                    raise Unreadable(f"environment {name!r} ends as {token.text!r}")
                if cells:
                    rows.append(tuple(cells))
                    cells = []
                if token.kind == "end_env":
                    break
                continue
            if token.text in ("&", "hline", "\\&", "quad") or (token.text == "," and kind == "cases"):
                self.next()
                continue
            if token.kind == "text" and kind == "cases":
                self.next()
                cells.append(Text(words(token.text)))
                continue
            cells.append(self.statement())
        self.leave()
        return Matrix(tuple(rows), kind)


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
    text = _CONDITION.sub(r", \1", _unannounced(_trimmed(strip_math(text))))
    if not text:
        raise Unreadable("empty")
    clock = _CLOCK.fullmatch(re.sub(r"\\(?:text|mathrm)\s*\{\s*([^{}]*)\}", r" \1", text).strip())
    if clock and _is_clock(clock):
        hours, minutes, seconds, half, _ = clock.groups()
        return Clock(f"{int(hours)}:{minutes}:{seconds or '00'}{(half or '').lower()}")
    choice = _choice(text)
    if choice is not None:
        return choice
    if re.fullmatch(r"[^\W\d_]+(?:[\s'-]+[^\W\d_]+)*", text) and _in_words(text):
        return Text(words(text))
    tokens = _inline_math(tokenize(text, commas))
    tree = Parser(tokens).answer()
    if depth(tree) > MAX_TREE_DEPTH:
        raise Unreadable("nested too deeply")
    return tree


_CONDITION = re.compile(
    r"(?:[\s,]|\\[,; ]|\\q?quad)*(?:\\left)?\(([^()]{1,20}\\in(?![a-z])[^()]{1,30}?)(?:\\right)?\)\s*$"
)
_ARROW = re.compile(
    r"^(?:\\(?:therefore|implies|Rightarrow|Longrightarrow|rightarrow|to)(?![a-zA-Z])|=>|->)\s*"
)
_NAMED = re.compile(r"^([A-Za-z]+(?: [A-Za-z]+){0,6})\s*[=:]\s*(?=\S)(?!=)")
_IN_WORDS = re.compile(r"^\\text\s*\{([^{}]{1,60}?)(?:\bis|\bare|\bequals|:)\s*:?\s*\}\s*(?=\S)")


def _unannounced(text: str) -> str:
    """`text` without an arrow, or words that only name the value, before it ("Total = 13")."""
    text = _ARROW.sub("", text)
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


def _is_word(word: str) -> bool:
    """Whether letters are a word rather than a product of variables."""
    return word in ("sum", "ans", "age", "gcd", "lcm") or (len(word) > 3 and bool(set(word) & set("aeiou")))


def _trimmed(text: str) -> str:
    """`text` without trailing punctuation and spacing; dots that mean "and so on" stay."""
    text = re.sub(r"(?:\\[,;:!]|\\ |\\\\|\\q?quad)+\s*$", "", text.rstrip())
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
        return len(text) > 1 and not _math_word(text)
    known = FUNCTIONS.keys() | GREEK | OR_WORDS | AND_WORDS | {"pi"}
    return (
        any(len(run) > 2 for run in runs)
        and not known & {run.casefold() for run in runs}
        or (len(runs[0]) > 1 and not known & set(runs))
    )


def _math_word(text: str) -> bool:
    """Whether letters alone are mathematics: a constant, a Greek name, a short product of variables."""
    if text in ("pi", "infinity", "inf", "oo", "Infinity") or text in GREEK:
        return True
    if not text.isascii() or not text.islower() or text in _SHORT_WORDS:
        return False
    return len(text) == 2 or (len(text) == 3 and (not set(text) & set("aeiou") or set(text) <= set("abc")))
