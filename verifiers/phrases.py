"""Words around answers, in the languages models answer in: what announces, negates or corrects one."""

from __future__ import annotations

import re

#: "answer" in English, with what may stand between it and the answer itself.
_ANNOUNCES = (
    r"(?:final |correct |right |exact |numerical |resulting |simplified )*(?:answer|ans)"
    r"(?: to (?:the|this) \w+)?(?: choice| option)?"
)
_VERB = (
    r"\s*(?:is|was|are|would be|will be|must be|should be|comes out to(?: be)?|equals|becomes)"
    r"(?: therefore| thus| then| hence| indeed| simply| just| exactly| clearly)?(?: given by| equal to)?"
)
_OTHER_LANGUAGES = "|".join(
    (
        r"(?:la )?respuesta(?: final| correcta)?(?: es)?",
        r"(?:la )?réponse(?: finale| correcte)?(?: est)?",
        r"(?:die )?(?:endgültige |richtige )?antwort(?: ist| lautet)?",
        r"(?:das )?ergebnis(?: ist| lautet)?",
        r"(?:la )?risposta(?: finale| corretta)?(?: è)?",
        r"(?:a )?resposta(?: final| correta)?(?: é)?",
        r"(?:окончательный |правильный )?ответ(?: равен)?",
        "відповідь",
        r"odpowiedź(?: to)?",
        r"odpověď(?: je)?",
        r"(?:het )?antwoord(?: is)?",
        r"svaret(?: är| er)?",
        "svar",
        r"vastaus(?: on)?",
        "cevap",
        "yanıt",
        r"jawaban(?:nya)?(?: adalah)?",
        r"(?:đáp án|đáp số|câu trả lời)(?: là)?",
        r"răspunsul(?: este)?",
        r"(?:a )?válasz",
        "η απάντηση είναι",
        "απάντηση",
        "答(?=[:：])",
        r"(?:故|应|應|因此|所以)?(?:选|選)(?:择|擇)?(?=[\s(（]*[A-J])",
        r"(?:最终|最後|正确|所以|因此)?答案(?:是|为|為|应该是|选|選|就是)?",
        "故选",
        "答案選",
        r"答え(?:は)?",
        r"解答(?:は)?",
        "(?:정답|답|답은|정답은)",
        r"उत्तर(?: है)?",
        r"الإجابة(?: هي| النهائية)?",
        r"الجواب(?: هو)?",
        "پاسخ",
        r"התשובה(?: היא)?",
        r"คำตอบ(?:คือ)?",
    )
)
_BARE_MARK = r"\s*(?:\*\*|__)?\s*(?:[:：=]|→|->|\n)\s*(?:\*\*|__)?\s*"  # without a verb, a mark is needed
_MARK = r"\s*(?:\*\*|__)?\s*(?:[:：=]|→|->)?\s*(?:\*\*|__)?\s*"
#: Somebody else's answer is not the final statement.
_NOT_OURS = r"(?<!gold )(?<!reference )(?<!expected )(?<!say the )(?<!truth )"
#: "Result:" and the like announce an answer only when mathematics follows at once.
_RESULT = (
    r"(?:the )?(?:final )?(?:result|solution)(?: is)?|(?:die )?lösung(?: ist| lautet)?|"
    r"(?:el )?resultado(?: final)?(?: es| é)?|(?:le )?résultat(?: est)?|(?:il )?risultato(?: è)?|solución|"
    r"soluzione|solução|итого|итог|результат|结果(?:是|为)?|结论|結果"
)
RESULT = re.compile(
    r"(?:^|\n)\W*(?:the )?(?:final )?answer(?:\s+[-–—]\s+(?=[$\\(]*-?\d)|\s+(?=[$\\(]*-?\d))|"
    rf"(?<![\w-])(?:{_RESULT}){_MARK}(?<=[:：=>\s*_是为])(?=[$\\]*-?\d|\$|\\\()",
    re.IGNORECASE,
)
PHRASE = re.compile(
    rf"(?:(?<![\w-]){_NOT_OURS}(?:the |my |our |your )?{_ANNOUNCES}"
    rf"(?:{_VERB}(?![\w-]){_MARK}|{_BARE_MARK})|(?<!\w)ans\.\s+|(?:{_OTHER_LANGUAGES})(?![\w-])?{_MARK})"
    r"(?<=[:：=>\s*_是为為选選择擇は은:])(?=\S)",
    re.IGNORECASE,
)
#: "84 is the answer", "84 is the final answer".
PHRASE_AFTER = re.compile(
    r"(?:^|[.,;:]\s+|\n)(?:so |thus |therefore |hence )?,?\s*(\S(?:[^\n.;:,]|,(?=\d)){0,80}?)"
    r" is (?:the|our|my) (?:final |correct |only |unique )*(?:answer|solution)\b",
    re.IGNORECASE,
)
_NOT = (
    r"(?:not|n't|n’t|never|neither|nor|cannot|rather than|instead of|except|unlike|other than|more than|"
    r"less than|fewer than|greater than|larger than|smaller than|at least|at most|up to|over|under|between|"
    r"wrong|incorrect|doubt|deny|anything but|no longer|nicht|kein|keine|ne|pas|no es|non è|não é|не|"
    r"не равен|不是|不等于|ではない|아니)"
)
NEGATION_BEFORE = re.compile(
    rf"(?:\b|(?=n['’]t)){_NOT}\b[^.,;:\n]{{0,20}}$|(?:≠|\\neq?|不是|不等于)\s*\$?\s*$", re.IGNORECASE
)
AFTER_REFUSES = re.compile(
    r"\$?[\s)\"']*(?:,\s*)?(?:"
    r"(?:which |that |this |but (?:that|this|it) )?(?:is|was|would be|seems|looks)\s+"
    r"(?:not|n't|wrong|incorrect|false|too (?:big|small|large|high|low)|impossible|only a guess)|"
    r"isn't|is n't|wasn't|\((?:wrong|incorrect|not)|(?:cannot|can't|can not) be|"
    r"ist falsch|est faux|es incorrecto|是错|不对)",
    re.IGNORECASE,
)
HEDGE = re.compile(
    r"(?<![\\\w])(?:either|or maybe|or perhaps|or possibly|maybe|perhaps|not sure|unsure|i guess|"
    r"i think maybe|could be|might be|may be|one of|somewhere between|any of|depends)(?!\w)|可能是|也许|大概",
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
    r"(?<=\w)['’]s\s+|(?<![\w'])(?:is|are|was|be|equals?|equal to|gives?|get|gets|got|have|has|obtain|"
    r"obtains|yields?|yielding|giving|leaving|making|becomes?|total(?:s|ing)?|costs?|comes to|amounts to|"
    r"makes|leaves|find|conclude|"
    r"therefore|thus|hence|so|result|es|est|ist|è|é|sind|son|sont|равно|является|是|为|為|等于|は|"
    r"needs?|takes?|had|made|weighs?|contains?|holds?|sold|bought|saves?|saved|uses?|used|received|receives|"
    r"scored|ran|runs|"
    r"(?:total|profit|sum|cost|price|distance|amount|average) of|"
    r"il y a|hay|ci sono|es gibt|existen|existem|всего|имеется|"
    r"earns?|paid|pays?|spends?|there are|there were)(?!\w)[\s:=]*|(?<=[是为於于有得共])|(?<=[a-z])=\s*",
    re.IGNORECASE,
)
#: What ends the answer inside a phrase: an explanation begins.
CLAUSE_ENDS = re.compile(
    r"\s*[,;]?\s+(?:because|since|as\s|where|when|which|so that|given|due to|after|obtained|by\s|for\s|"
    r"if\s|weil|denn|car|parce|porque|потому|так как)|[,;]\s+(?:not|so|but|i\.e|that is|which|then)\b|，|"
    r"因为|"
    r"(?<=[\w$}%])\s+\((?=[^)]*[a-z]{3})|\s+(?:and|but) not\b|\s+(?:rather than|instead of)\b",
    re.IGNORECASE,
)
#: A rounded value behind the exact one.
ROUNDED = re.compile(
    r"(?<![\s,(])[\s,(]+(?:or\s+)?(?:about|approximately|approx\.?|roughly|circa|≈)\s+\$?\$?-?[\d.,]+\$?\)?\.?\s*$",
    re.IGNORECASE,
)
#: What follows an answer and takes it back or puts another beside it.
TAKEN_BACK = re.compile(
    r"[\s.!*$\\)\]}]*(?:(?:or|oder|ou)\b(?!\s+(?:equivalently|in other words|about|approximately|roughly))|"
    r"but\b[^.\n]*\b(?:not sure|unsure|maybe|perhaps|possibly|might|could)\b|"
    r"(?:no|wait|hmm+|actually|oops|alternatively|maybe|perhaps|possibly)(?=[\s,.!…]+\S)(?!\s+\w+\s+(?:needed|required)))",
    re.IGNORECASE,
)
#: Before an announcement: what follows is not stated but denied or supposed.
DENIED = re.compile(
    r"\b(?:not the case|not true|not sure|not clear|not certain|doubt|false|wrong|incorrect|deny|unlikely|"
    r"do(?:es)?n['’]t (?:think|believe|know)|not (?:think|believe)|nobody|no one|suppose|assum\w+|whether|"
    r"unless|if)\b[^.,;:\n]{0,30}\Z",
    re.IGNORECASE,
)
JSON_ANSWER = re.compile(r"[\"'](?:final[_ ])?answer[\"']\s*:\s*[\"']?([^\"'}\n]+)[\"']?", re.IGNORECASE)
#: A box inside a larger expression is not the answer: an operator, a relation or a function around it. A
#: number multiplies a box that follows it on its line, not one on a line of its own.
PART_BEFORE = re.compile(
    r"(?:(?<![\d\s]\s)(?:[<>≤≥≠+/]|\\(?:neq?|ge|geq|le|leq|lt|gt|cdot|times|pm|mp|not|neg|lnot)\s*)|"
    r"(?<=[\d)])(?!\s*\n)|\^\{?|"
    r"\\(?:sqrt|[xb]?cancel|sout|[hv]?phantom|overline|bar|log|ln|sin|cos|tan|lfloor|lceil|[dt]?frac|"
    r"(?:[dt]?frac|binom)\s*\{[^{}]*\})\s*(?:\[[^\]]*\])?\s*\{?)\s*\Z"
)
PART_AFTER = re.compile(
    r"(?:\^(?!\s*\{?\\circ)|[a-zA-Z](?![a-zA-Z])|!\s*\$|\d|\s*(?:\\cdot|\\times|\+|/)\s*[\w\\]|_)"
)
