"""Words around answers, in the languages models answer in: what announces, negates, hedges or corrects one."""

from __future__ import annotations

import re

#: "answer" in many languages, with what may stand between it and the answer itself.
_ANNOUNCES = (
    r"(?:final |correct |right |exact |numerical |resulting |simplified )*(?:answer|ans)(?: to (?:the|this) \w+)?"
    r"(?: choice| option)?"
    r"(?:\s*(?:is|was|are|would be|will be|must be|should be|comes out to(?: be)?|equals|becomes))?"
    r"(?: therefore| thus| then| hence| indeed| simply| just| exactly| clearly)?(?: given by| equal to)?"
)
_OTHERS = (
    r"(?:la )?respuesta(?: final| correcta)?(?: es)?|(?:la )?réponse(?: finale| correcte)?(?: est)?|"
    r"(?:die )?(?:endgültige |richtige )?antwort(?: ist| lautet)?|(?:das )?ergebnis(?: ist| lautet)?|"
    r"(?:la )?risposta(?: finale| corretta)?(?: è)?|(?:a )?resposta(?: final| correta)?(?: é)?|"
    r"(?:окончательный |правильный )?ответ(?: равен)?|відповідь|odpowiedź(?: to)?|odpověď(?: je)?|"
    r"(?:het )?antwoord(?: is)?|svaret(?: är| er)?|svar|vastaus(?: on)?|cevap|yanıt|jawaban(?:nya)?(?: adalah)?|"
    r"(?:đáp án|đáp số|câu trả lời)(?: là)?|răspunsul(?: este)?|a válasz|válasz|απάντηση|η απάντηση είναι|"
    r"(?:最终|最後|正确|所以|因此)?答案(?:是|为|為|应该是|选|選|就是)?|故选|答案選|答え(?:は)?|解答(?:は)?|"
    r"(?:정답|답|답은|정답은)|उत्तर(?: है)?|الإجابة(?: هي| النهائية)?|الجواب(?: هو)?|پاسخ|התשובה(?: היא)?|คำตอบ(?:คือ)?"
)
_MARK = r"\s*(?:\*\*|__)?\s*(?:[:：=]|→|->)?\s*(?:\*\*|__)?\s*"
PHRASE = re.compile(
    rf"(?:(?<![\w-])(?<!gold )(?<!reference )(?<!expected )(?<!say the )(?<!truth )(?:the |my |our |your )?{_ANNOUNCES}|{_OTHERS})(?![\w-])?{_MARK}"
    r"(?<=[:：=>\s*_是为為选選は은:])(?=\S)",
    re.IGNORECASE,
)
#: "84 is the answer", "84 is the final answer".
PHRASE_AFTER = re.compile(
    r"(?:^|[.,;:]\s+|\n)(?:so |thus |therefore |hence )?,?\s*(\S(?:[^\n.;:,]|,(?=\d)){0,80}?) is (?:the|our|my) (?:final |correct )*answer\b",
    re.IGNORECASE,
)
_NOT = (
    r"(?:not|n't|n’t|never|neither|nor|cannot|rather than|instead of|except|unlike|other than|"
    r"more than|less than|fewer than|greater than|larger than|smaller than|at least|at most|up to|over|under|"
    r"between|wrong|incorrect|doubt|deny|anything but|no longer|nicht|kein|keine|ne|pas|no es|non è|não é|не|не равен|不是|不等于|ではない|아니)"
)
NEGATION_BEFORE = re.compile(
    rf"(?:\b|(?=n['’]t)){_NOT}\b[^.,;:\n]{{0,20}}$|(?:≠|\\neq?|不是|不等于)\s*\$?\s*$", re.IGNORECASE
)
AFTER_REFUSES = re.compile(
    r"\$?[\s)\"']*(?:,\s*)?(?:(?:which |that |this |but (?:that|this|it) )?(?:is|was|would be|seems|looks)\s+"
    r"(?:not|n't|wrong|incorrect|false|too (?:big|small|large|high|low)|impossible|only a guess)|isn't|is n't|"
    r"wasn't|\((?:wrong|incorrect|not)|(?:cannot|can't|can not) be|ist falsch|est faux|es incorrecto|是错|不对)",
    re.IGNORECASE,
)
HEDGE = re.compile(
    r"(?<![\\\w])(?:either|or maybe|or perhaps|or possibly|maybe|perhaps|not sure|unsure|i guess|i think maybe|"
    r"could be|might be|may be|one of|somewhere between|any of|depends)(?!\w)|可能是|也许|大概",
    re.IGNORECASE,
)
#: What stands between two boxes of one statement: punctuation, connectives, a name and an equals sign.
SAME_STATEMENT = re.compile(
    r"(?:[\s$.,;&:()*\\|/~_-]|\b(?:and|or|maybe|perhaps|possibly|also|either|und|oder|et|ou|y|o|e)\b|和|或|及|"
    r"\\(?:text|quad|qquad|mathrm|,|;)|[{}]|[A-Za-z](?:_\{?\w{1,3}\}?)?\s*=|\\[a-z]+\s*=)*"
)
CORRECTION = re.compile(
    r"(?<!\w)(?:no|wait|actually|correction|corrected|rather|instead|sorry|oops|hmm|mistake|wrong|revised?|so|"
    r"therefore|thus|hence|final|finally|recheck|check)(?!\w)|不对|修正|更正",
    re.IGNORECASE,
)
#: Behind these a sentence states its result.
CONCLUDES = re.compile(
    r"(?<=\w)['’]s\s+|(?<![\w'])(?:is|are|was|be|equals?|equal to|gives?|get|gets|got|have|has|obtain|obtains|yields?|becomes?|"
    r"total(?:s|ing)?|costs?|comes to|amounts to|makes|leaves|find|conclude|therefore|thus|hence|so|result|"
    r"es|est|ist|è|é|sind|son|sont|равно|является|是|为|為|等于|は|needs?|takes?|earns?|paid|pays?|spends?|"
    r"there are|there were)(?!\w)[\s:=]*|(?<=[是为於于有得共])|(?<=[a-z])=\s*",
    re.IGNORECASE,
)
#: What ends the answer inside a phrase: an explanation begins.
CLAUSE_ENDS = re.compile(
    r"\s*[,;]?\s+(?:because|since|as\s|where|when|which|so that|given|due to|after|obtained|by\s|for\s|if\s|"
    r"weil|denn|car|parce|porque|потому|так как)|[,;]\s+(?:not|so|but|i\.e|that is|which|then)\b|，|因为|(?<=[\w$}%])\s+\((?=[^)]*[a-z]{3})|"
    r"\s+(?:and|but) not\b|\s+(?:rather than|instead of)\b",
    re.IGNORECASE,
)
#: A rounded value behind the exact one.
ROUNDED = re.compile(
    r"[\s,(]+(?:or\s+)?(?:about|approximately|approx\.?|roughly|circa|≈)\s+\$?\$?-?[\d.,]+\$?\)?\.?\s*$",
    re.IGNORECASE,
)
JSON_ANSWER = re.compile(r"[\"'](?:final[_ ])?answer[\"']\s*:\s*[\"']?([^\"'}\n]+)[\"']?", re.IGNORECASE)
#: A box inside a larger expression is not the answer: an operator, a relation or a function around it.
PART_BEFORE = re.compile(
    r"(?:(?<![\d\s]\s)(?:[<>≤≥≠+/]|\\(?:neq?|ge|geq|le|leq|lt|gt|cdot|times|pm|mp|not|neg|lnot)\s*)|(?<=[\d)])|\^\{?|"
    r"\\(?:sqrt|cancel|xcancel|bcancel|sout|h?phantom|vphantom|overline|bar|log|ln|sin|cos|tan|lfloor|lceil|[dt]?frac|"
    r"(?:[dt]?frac|binom)\s*\{[^{}]*\})\s*(?:\[[^\]]*\])?\s*\{?)\s*\Z"
)
PART_AFTER = re.compile(
    r"(?:\^(?!\s*\{?\\circ)|[a-zA-Z](?![a-zA-Z])|!\s*\$|\d|\s*(?:\\cdot|\\times|\+|/)\s*[\w\\]|_)"
)
