"""The grammar of an answer, by recursive descent: lists of relations between set expressions.

    answer    = choice | statement { ("," | ";" | "or" | "and") statement }
    statement = side { relation side }
    side      = arith { ("∪" | "∩" | "\\setminus") arith } | ratio
    arith     = term { ("+" | "-" | "±" | "∓") term }          (terms and below: `verifiers.terms`)

Text never becomes code: a name that is not in `verifiers.tables` is a symbol, a command that is not is an
error. What cannot be read raises `Unreadable`; depth and length are bounded.
"""

from __future__ import annotations

from verifiers.nodes import (
    Builder,
    Matrix,
    Node,
    Ratio,
    Rel,
    Seq,
    SetOp,
    Sym,
    Text,
)
from verifiers.tables import AND_WORDS, ENVIRONMENTS, OR_WORDS, RELATIONS
from verifiers.terms import Terms
from verifiers.text import Unreadable, words

_SETS = {"cup": "cup", "cap": "cap", "setminus": "setminus", "backslash": "setminus"}
_IMPLIES = frozenset({"implies", "Rightarrow", "Longrightarrow", "iff", "Leftrightarrow", "therefore",
                      "Longleftrightarrow", "longrightarrow", "rightarrow"})  # fmt: skip


class Parser(Terms):
    """One parse of one token stream."""

    def answer(self) -> Node:
        node = self.over(self.items("", ""), "")
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
            while (again := self.separator()) is not None:  # "3, and 4"
                joined = again if again != "," else joined
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
            doubled = {"<=": "<=", ">=": ">=", "!=": "!=", "<>": "!=", ":=": "="}
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
            either = (Seq("", "", conditions.items, "or"),)
            inner_node: Node = Builder(
                inner.items[0], either if conditions.joined == "or" else conditions.items
            )
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
                said = words(self.next().text)
                if said not in ("if", "when", "for", "where"):
                    cells.append(Text(said))
                continue
            cells.append(self.statement())
        self.leave()
        return Matrix(tuple(rows), kind)
