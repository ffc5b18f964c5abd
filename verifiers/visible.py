"""What of a completion is stated at all: without thinking, comments, what is struck through, and tags."""

from __future__ import annotations

import re

_OPEN_THINK = re.compile(
    r"<(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis)>|◁think▷|"
    r"<\|begin_of_thought\|>|\[THINK\]|<\|channel\|>analysis<\|message\|>",
    re.IGNORECASE,
)
_CLOSE_THINK = re.compile(
    r"</(?:think|thinking|thought|thoughts|reasoning|reflection|scratchpad|analysis)>|◁/think▷|"
    r"<\|end_of_thought\|>|\[/THINK\]|<\|end\|>",
    re.IGNORECASE,
)
_COMMENT_LINE = re.compile(r"^[ \t]*%.*$", re.MULTILINE)
_SPECIAL = re.compile(r"<\|[a-z_]{1,30}\|>|</?s>|<eos>|<\|end▁of▁sentence\|>", re.IGNORECASE)


def without_thinking(text: str) -> str | None:
    """`text` without what is inside thinking tags; None when the thinking never ends."""
    if "<" not in text and "◁" not in text and "[" not in text:
        return text
    close = None
    for match in _CLOSE_THINK.finditer(text):
        if match.group() != "<|end|>" or "<|channel|>" in text:
            close = match
    if close is not None:
        text = text[close.end() :]
    opened = _OPEN_THINK.search(text)
    if opened is None:
        return text
    before = text[: opened.start()]
    return before if before.strip() else None


_HIDDEN = (
    ("<!--", "-->"),
    ("\\begin{comment}", "\\end{comment}"),
    ("~~", "~~"),
    ("<del>", "</del>"),
    ("<s>", "</s>"),
    ("<strike>", "</strike>"),
)
_INVISIBLE = re.compile(
    r"<(\w{1,10})\s[^<>]{0,200}?(?:hidden|display\s*:\s*none|white|opacity|font-size)[^<>]{0,200}>[^<]{0,500}</\1>",
    re.IGNORECASE,
)
_HTML = re.compile(
    r"</?(?:b|i|u|em|strong|p|br|span|div|code|pre|mark|center|font|h[1-6]|li|ul|ol|math)\s*/?>",
    re.IGNORECASE,
)


def without_hidden(text: str) -> str:
    """`text` without comments, what is struck through or invisible, and tags."""
    for opener, closer in _HIDDEN:
        if opener not in text:
            continue
        kept, position = [], 0
        while (start := text.find(opener, position)) >= 0:
            end = text.find(closer, start + len(opener))
            if end < 0:
                break
            kept.append(text[position:start])
            position = end + len(closer)
        text = "".join([*kept, text[position:]])
    if "</" in text:
        text = _INVISIBLE.sub("", text)
    if "</" in text or "<br" in text:
        text = _HTML.sub("", text)
    text = _COMMENT_LINE.sub("", text) if "%" in text else text
    return _SPECIAL.sub("", text)
