"""Vocabulary of the answer grammar: which names are functions, constants, symbols, relations and noise."""

from __future__ import annotations

GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi omicron "
    "rho varrho sigma varsigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma "
    "Upsilon Phi Psi Omega ell hbar Re Im aleph wp".split()
)

#: Functions of one argument, by every name they are written with.
FUNCTIONS = {
    name: name
    for name in "sin cos tan cot sec csc sinh cosh tanh coth sech csch exp ln arg sgn det tr dim ker".split()
} | {
    "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arccot": "acot", "arcsec": "asec",
    "arccsc": "acsc", "asin": "asin", "acos": "acos", "atan": "atan", "acot": "acot", "arcsinh": "asinh",
    "arccosh": "acosh", "arctanh": "atanh", "asinh": "asinh", "acosh": "acosh", "atanh": "atanh",
    "arsinh": "asinh", "arcosh": "acosh", "artanh": "atanh",
    "cosec": "csc", "tg": "tan", "ctg": "cot", "cotg": "cot", "arctg": "atan", "sh": "sinh", "ch": "cosh",
    "th": "tanh", "log": "log", "lg": "log10", "sqrt": "sqrt", "cbrt": "cbrt", "abs": "abs", "sign": "sgn",
    "floor": "floor", "ceil": "ceil", "gcd": "gcd", "lcm": "lcm", "max": "max", "min": "min", "mod": "mod",
    "binom": "binom", "factorial": "fact",
}  # fmt: skip
#: Of those, the ones that plain text may run together with their argument (`sinx`, `sqrt2`).
GLUED = ("arcsin", "arccos", "arctan", "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln")
INVERSES = {"sin": "asin", "cos": "acos", "tan": "atan", "cot": "acot", "sec": "asec", "csc": "acsc",
            "sinh": "asinh", "cosh": "acosh", "tanh": "atanh"}  # fmt: skip

#: Calls whose value the verifier can compute; every other name is an unknown function.
KNOWN_CALLS = frozenset(FUNCTIONS.values()) | {"root", "logb", "fact", "conj", "norm"}

RELATIONS = {
    "=": "=", "<": "<", ">": ">", "le": "<=", "leq": "<=", "leqslant": "<=", "leqq": "<=", "ge": ">=",
    "geq": ">=", "geqslant": ">=", "geqq": ">=", "ne": "!=", "neq": "!=", "approx": "~", "simeq": "~",
    "cong": "cong", "equiv": "equiv", "in": "in", "lt": "<", "gt": ">", "doteq": "=", "sim": "sim",
    "notin": "notin", "subset": "subset", "subseteq": "subset", "propto": "propto", "parallel": "parallel",
    "perp": "perp", "mid": "mid", "to": "to", "mapsto": "to",
}  # fmt: skip

#: Dropped wherever they stand: they change the look, not the meaning.
SILENT = frozenset(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr displaystyle textstyle "
    "scriptstyle scriptscriptstyle limits nolimits tiny scriptsize footnotesize small normalsize large Large "
    "LARGE huge Huge bf it rm sf tt bfseries itshape boldmath hfill noindent centering mathstrut strut "
    "nonumber notag protect relax allowbreak middle".split()
)
SPACE = frozenset(
    "quad qquad enspace thinspace medspace thickspace negthinspace space nobreakspace enskip".split()
)
#: Dropped together with their argument.
SILENT_WITH_ARGUMENT = frozenset("hspace vspace phantom hphantom vphantom label tag color hskip kern".split())
#: Their argument is read as mathematics.
FONTS = frozenset(
    "mathbf mathit mathsf mathtt mathcal mathfrak mathscr boldsymbol bm pmb boxed fbox framebox mathord "
    "underline ensuremath displaylines mathnormal symbf".split()
)
TEXT = frozenset(
    "text textbf textit textrm textsf texttt textnormal textup mbox hbox mathrm operatorname emph".split()
)
#: Marks on a symbol that make another symbol.
ACCENTS = frozenset("hat widehat tilde widetilde vec dot ddot overrightarrow check breve acute grave".split())
PREFIXES = frozenset("angle triangle measuredangle odot Box square".split())
OPERATORS = frozenset(
    "sum int iint iiint oint prod lim limsup liminf sup inf partial nabla bigcup bigcap".split()
)

#: Commands that are another name of a bracket.
ALIASES = {"lbrace": "\\{", "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")",
           "vert": "|"}  # fmt: skip

ENVIRONMENTS = {
    **dict.fromkeys("matrix pmatrix bmatrix Bmatrix smallmatrix array".split(), "matrix"),
    **dict.fromkeys(("vmatrix", "Vmatrix"), "det"),
    **dict.fromkeys(("cases", "dcases", "rcases"), "cases"),
}
TRANSPARENT_ENVIRONMENTS = frozenset(
    "aligned align align* equation equation* gather gathered gather* split displaymath math center".split()
)

OR_WORDS = frozenset("or oder ou 或 或者 または или lub".split())
AND_WORDS = frozenset({"and", "und", "et", "y", "e", "和", "以及", "と", "и", "&", "as well as"})
#: Words that turn a value into something else than that value; no answer with one of them is read as one.
MEANING = frozenset(
    "not no non isn't isnt never neither nor without except wrong incorrect false invalid impossible maybe "
    "perhaps possibly probably either unsure guess plus minus times over divided multiplied by squared cubed "
    "factorial negative minus less more greater fewer than least most above below under exceeds between mod "
    "modulo base if unless but is are was were be isn't can't cannot half twice double triple quarter third "
    "thirds halves quarters hundredths tenths inverse reciprocal root power raised nearly almost around "
    "about approximately roughly instead rather to through until up down digits choose unknown undefined "
    "ish odd something because since therefore thus so which that where when while then hence".split()
)
MULTIPLIERS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12,
               "dozen": 12, "k": 1000}  # fmt: skip

FRACTIONS = frozenset({"frac", "dfrac", "tfrac", "cfrac", "vfrac", "sfrac", "nicefrac", "flatfrac"})

_SHORT_WORDS = frozenset(
    "no on at as an am by my us we to so of if in is it he me be do go up or hi ok".split()
)


def is_product(text: str) -> bool:
    """Whether letters alone are mathematics: a constant, a Greek name, a short product of variables."""
    if text in ("pi", "infinity", "inf", "oo", "Infinity") or text in GREEK:
        return True
    if not text.isascii() or not text.islower() or text in _SHORT_WORDS:
        return False
    return len(text) == 2 or (len(text) == 3 and (not set(text) & set("aeiou") or set(text) <= set("abc")))
