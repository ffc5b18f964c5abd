"""Units of measure: exact factors, and how a phrase behind a number is read as one.

A unit the table does not know is its own dimension ("5 apples" is not "5 oranges"); "units" is generic
and counts as no unit at all.
"""

from __future__ import annotations

import re
from fractions import Fraction

from verifiers.nodes import Unit
from verifiers.tables import MEANING

_Dims = dict[str, Fraction]


#: name of the row, factor in base units, dimension: every name the unit is written with (singular)
_ROWS = """
m 1 L: m meter metre
km 1000 L: km kilometer kilometre kms
cm 1/100 L: cm centimeter centimetre cms
mm 1/1000 L: mm millimeter millimetre
dm 1/10 L: dm decimeter decimetre
um 1/1000000 L: um micrometer micron
nm 1/1000000000 L: nm nanometer
in 127/5000 L: in inch inche in.
ft 381/1250 L: ft foot feet ft.
yd 1143/1250 L: yd yard yd.
mi 201168/125 L: mi mile mi.
ly 9460730472580800 L: lightyear light-year
g 1 M: g gram gramme
kg 1000 M: kg kilogram kilo kgs
mg 1/1000 M: mg milligram
t 1000000 M: tonne
lb 45359237/100000 M: lb pound lb. lbs
oz 45359237/1600000 M: oz ounce oz.
ton 45359237/50 M: ton
s 1 T: s sec second sec. secs
ms 1/1000 T: ms millisecond
min 60 T: min minute min. mins
h 3600 T: h hr hour hrs hr.
d 86400 T: d day
wk 604800 T: week wk
mo 1 month: month
yr 1 year: year yr yrs
dec 10 year: decade
cent 100 year: century centurie
usd 1 USD: dollar usd $ buck
c 1/100 USD: cent ¢
eur 1 EUR: euro € eur
gbp 1 GBP: £ gbp
jpy 1 JPY: yen ¥ jpy
cny 1 CNY: yuan rmb
inr 1 INR: rupee inr rs
deg 1 angle: degree deg °
Hz 1 freq: hz hertz
kHz 1000 freq: khz
MHz 1000000 freq: mhz
J 1 energy: j joule
kJ 1000 energy: kj kilojoule
cal 1 cal: cal calorie
kcal 1000 cal: kcal kilocalorie
W 1 power: w watt
kW 1000 power: kw kilowatt
MW 1000000 power: mw megawatt
N 1 force: n newton
kN 1000 force: kn kilonewton
Pa 1 press: pa pascal
kPa 1000 press: kpa kilopascal
atm 1 atm: atm atmosphere
V 1 volt: v volt
A 1 amp: amp ampere
ohm 1 ohm: ohm ω
K 1 K: kelvin
C 1 celsius: celsius
F 1 fahrenheit: fahrenheit
mol 1 mol: mol mole
eV 1 eV: ev
byte 1 byte: byte
bit 1 bit: bit
"""


def _table() -> dict[str, tuple[Fraction, _Dims]]:
    found: dict[str, tuple[Fraction, _Dims]] = {}
    for row in _ROWS.strip().splitlines():
        head, _, names = row.partition(":")
        _, factor, dim = head.split()
        for name in names.split():
            found[name] = (Fraction(factor), {dim: Fraction(1)})
    litre = (Fraction(1, 1000), {"L": Fraction(3)})
    for name, scale in (("l", 1), ("liter", 1), ("litre", 1), ("ml", 1000), ("milliliter", 1000),
                        ("millilitre", 1000), ("cl", 100), ("dl", 10)):  # fmt: skip
        found[name] = (litre[0] / scale, litre[1])
    found["gallon"] = found["gal"] = (Fraction(473176473, 125000000) / 1000, {"L": Fraction(3)})
    found["mph"] = (Fraction(201168, 125) / 3600, {"L": Fraction(1), "T": Fraction(-1)})
    found["kph"] = found["kmh"] = (Fraction(1000, 3600), {"L": Fraction(1), "T": Fraction(-1)})
    found["radian"] = found["rad"] = (Fraction(1), {"radian": Fraction(1)})
    found["hectare"] = found["ha"] = (Fraction(10000), {"L": Fraction(2)})
    found["acre"] = (Fraction(316160658, 78125), {"L": Fraction(2)})
    found["percent"] = (Fraction(1, 100), {})
    return found


KNOWN = _table()
#: Abbreviations that are read as units when written against the number without a space (`5km`).
ATTACHED = frozenset(
    "km cm mm dm nm kg mg lb lbs oz ft mi yd sec min hr hrs ml mph kph hz khz kj kw kpa mol usd rad th st "
    "nd rd".split()
)
SINGLE = frozenset("m g s h L l N J W V A K C F d".split())
_GENERIC = frozenset({"unit", "u"})
_POWER_WORDS = {"square": 2, "sq": 2, "sq.": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
_WORD = re.compile(r"[^\W\d_][\w.\-']*|[°$€£¥¢]", re.UNICODE)
_PIECE = re.compile(
    r"([^\W\d_][^\W\d_.\-']*\.?|[°$€£¥¢]|/|\^\{?-?\d\}?|\bper\b|-|·|\*|\s+|\\cdot)", re.UNICODE
)


def singular(word: str) -> str:
    """`word` without the plural ending, for comparison only."""
    word = word.casefold()
    if word in KNOWN or len(word) <= 3:
        return word
    if word.endswith("ies"):
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def read_unit(phrase: str) -> Unit | None:
    """The unit that `phrase` names, or None when it is none: when a word changes the meaning of the number
    before it, or the phrase is not made of words."""
    phrase = phrase.strip().strip(",;").strip()
    if phrase.endswith(".") and singular(phrase) not in KNOWN:
        phrase = phrase[:-1]
    if not phrase or len(phrase) > 60:
        return None
    compact = phrase.replace("^", "").replace("{", "").replace("}", "")
    lowered = compact.casefold().split()
    if lowered[0] == "of" or (
        len(phrase) == 1 and phrase.isascii() and phrase not in SINGLE and phrase not in "°$€£¥¢"
    ):
        return None
    if any(word.strip(".,") in MEANING and word not in _POWER_WORDS for word in lowered):
        return None
    pieces = _PIECE.findall(phrase)
    if "".join(pieces) != phrase:
        return None
    return _combine(pieces, phrase)


def _combine(pieces: list[str], phrase: str) -> Unit | None:
    factor, dims = Fraction(1), dict[str, Fraction]()
    sign, power, generic = 1, 1, False
    nouns: list[str] = []
    last: tuple[Fraction, _Dims] | None = None
    for piece in pieces:
        word = piece.strip()
        if not word or word in ("-", "·", "*", "\\cdot"):
            continue
        if word in ("/", "per"):
            sign = -1
            continue
        if word.startswith("^"):
            if last is None:
                return None
            extra = int(word.strip("^{}")) - 1
            factor, dims = _times(factor, dims, *last, extra)
            last = None
            continue
        name = singular(word)
        if name in ("celsius", "fahrenheit") and last == (Fraction(1), {"angle": Fraction(sign)}):
            factor, dims = _times(factor, dims, *last, -1)  # "degrees Celsius"
        if name in _POWER_WORDS:
            if last is not None:  # "meters squared"
                factor, dims = _times(factor, dims, *last, _POWER_WORDS[name] - 1)
            else:
                power = _POWER_WORDS[name]
            continue
        if name in _GENERIC:
            generic, power, last = True, 1, (Fraction(1), {})
            continue
        known = _known(word, name)
        if known is None:
            if name == "of":
                continue
            if len(name) < 3 and name.isascii():
                return None
            nouns.append(name)
            last = (Fraction(1), {f"noun:{name}": Fraction(sign)})
            continue
        scale, base = known
        last = (scale**sign, {dim: exponent * sign for dim, exponent in base.items()})
        factor, dims = _times(factor, dims, *last, power)
        power = 1
    if len(nouns) > 4:
        return None
    if nouns and not dims:
        dims = {f"noun:{nouns[-1] if ' of ' not in phrase else nouns[0]}": Fraction(1)}
    if not dims and not generic:
        return None
    dims = {dim: exponent for dim, exponent in dims.items() if exponent}
    return Unit(factor, tuple(sorted(dims.items())), phrase, generic and not dims)


def _known(word: str, name: str) -> tuple[Fraction, _Dims] | None:
    if word in ("M", "Mm", "S", "mHz", "mW", "MG"):  # not metre, second, megahertz, megawatt, milligram
        return None
    return KNOWN.get(name) or KNOWN.get(word.casefold())


def _times(factor: Fraction, dims: _Dims, scale: Fraction, base: _Dims, power: int) -> tuple[Fraction, _Dims]:
    merged = dict(dims)
    for dim, exponent in base.items():
        merged[dim] = merged.get(dim, Fraction(0)) + exponent * power
    return factor * scale**power, merged


DEGREE = Unit(Fraction(1), (("angle", Fraction(1)),), "°")
