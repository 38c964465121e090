r"""Exact numbers as people write them, with percent signs and units.

`18`, `1,234.5`, `1.234,56`, `\frac{1}{2}`, `2 1/3`, `2\frac{1}{3}`, `0.\overline{3}`, `1.5 \times 10^{3}`, `25\%`,
`\$5`, `5.4 \text{ cents}`, `90^\circ`. Expects text from `r1.rewards.notation.clean`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_MAX_DIGITS = 1000  # so that Fraction stays fast
_MAX_EXPONENT = 400

_SIGN = r"(?P<sign>[+-]?)"
_PLAIN = re.compile(_SIGN + r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")
_THOUSANDS = re.compile(
    _SIGN + r"(?P<number>(?!0)[0-9]{1,3}(?:(?P<gap>[, ])(?! )[0-9]{3})(?:(?P=gap)[0-9]{3})*(?:\.[0-9]+)?)"
)
_EUROPEAN = re.compile(_SIGN + r"(?P<number>[0-9]{1,3}(?:\.[0-9]{3})+,[0-9]+|[0-9]{1,3}(?:\.[0-9]{3}){2,})")
_FRACTION = re.compile(r"([+-]?)\\frac ?\{ ?([+-]?[0-9.,]+) ?\} ?\{ ?([+-]?[0-9.,]+) ?\}")
_SLASH = re.compile(
    r"([+-]?[0-9.]+) ?/ ?(-?[0-9.]+)|\(([+-]?[0-9.]+)\) ?/ ?\(?([0-9.]+)\)?|([+-])\(([0-9.]+) ?/ ?([0-9.]+)\)"
)
_MIXED = re.compile(r"([+-]?)([0-9]+) ?(?:\\frac ?\{([0-9]+)\} ?\{([0-9]+)\}|(?<= )([0-9]+) ?/ ?([0-9]+))")
_REPEATING = re.compile(r"([+-]?)([0-9]*)\.([0-9]*)\\overline ?\{([0-9]+)\}")
_DOTTED = re.compile(r"([+-]?)([0-9]*)\.([0-9]*?)([0-9])\4{2,} ?\\ldots")  # 0.333...
_LONG_DECIMAL = re.compile(r"[+-]?0*(?P<whole>[0-9]*)\.(?P<digits>[0-9]+)")
_FULL_PRECISION = 12  # significant digits
_SCIENTIFIC = re.compile(
    r"([+-]?[0-9]+(?:\.[0-9]+|,(?:[0-9]{1,2}|[0-9]{4,})(?![0-9]))?) ?"
    r"(?:(?:\\times|\\cdot|\*|x) ?10 ?\^ ?(?:\{([+-]?[0-9]{1,4})\}|([0-9]))|[eE]([+-]?[0-9]{1,4}))"
)
_CURRENCY = re.compile(r"([+-]?) ?(?:\$|\u20ac|\u00a3|EUR |GBP |USD |US\$) ?")
_UNIT = re.compile(
    r"^(?P<value>.*?(?:[0-9)}\]!]|\\pi(?![a-z])|[A-Za-z](?= ?\\text)))\s*"
    r"(?P<unit>(?:\\text ?\{[^{}]*\}|\\circ|\^ ?\{? ?\\circ ?\}?|%|\u20ac|\u00a3|\\mu|[A-Za-z. /'\"$\u4e00-\u9fff]|"
    r"\^ ?\{?-?[0-9]\}?|-(?=[a-z]))+)$"
)
_UNIT_WORDS = re.compile(r"[A-Za-z]+")
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_NO_UNITS = frozenset(
    "or and is not are was to but if when maybe minus plus times than the a an as where for with so then i e pi sin "
    "cos tan log ln mod base wrong correct right true false no yes almost about over choose factorial".split()
)
_LETTER_UNITS = frozenset("m g s h L l N J K C F V W A".split())
_SPELT = {
    "meter": "m", "meters": "m", "metre": "m", "metres": "m", "centimeter": "cm", "centimeters": "cm", "cms": "cm",
    "centimetre": "cm", "centimetres": "cm", "kilometer": "km", "kilometers": "km", "kilometres": "km",
    "millimeter": "mm", "millimeters": "mm", "inch": "in", "inches": "in", "foot": "ft", "feet": "ft", "yard": "yd",
    "yards": "yd", "mile": "mi", "miles": "mi", "second": "s", "seconds": "s", "sec": "s", "secs": "s", "minute": "min",
    "minutes": "min", "mins": "min", "hour": "h", "hours": "h", "hr": "h", "hrs": "h", "day": "day", "days": "day",
    "week": "week", "weeks": "week", "gram": "g", "grams": "g", "kilogram": "kg", "kilograms": "kg", "kgs": "kg",
    "liter": "L", "liters": "L", "litre": "L", "litres": "L", "l": "L", "milliliter": "mL", "milliliters": "mL",
    "ml": "mL", "dollar": "$", "dollars": "$", "usd": "$", "cent": "cent", "cents": "cent", "pound": "lb",
    "pounds": "lb", "lbs": "lb", "degree": "deg", "degrees": "deg", "circ": "deg", "per": "/",
    "euros": "euro", "gallon": "gal", "gallons": "gal", "quart": "qt", "quarts": "qt", "pint": "pt", "pints": "pt",
    "ounce": "oz", "ounces": "oz", "tons": "ton", "tonnes": "tonne", "months": "month", "year": "yr", "years": "yr",
    "yrs": "yr", "units": "unit", "mph": "mi / h", "kph": "km / h", "kmh": "km / h", "rad": "radian",
    "radians": "radian", "squared": "^2",
    "cubed": "^3", "sq": "square", "cubic": "cubic",
}  # fmt: skip
_FACTORS = {
    "mm": ("m", Fraction(1, 1000)), "cm": ("m", Fraction(1, 100)), "m": ("m", Fraction(1)), "km": ("m", Fraction(1000)),
    "s": ("s", Fraction(1)), "min": ("s", Fraction(60)), "h": ("s", Fraction(3600)), "day": ("s", Fraction(86400)),
    "g": ("g", Fraction(1)), "kg": ("g", Fraction(1000)), "mg": ("g", Fraction(1, 1000)), "L": ("L", Fraction(1)),
    "mL": ("L", Fraction(1, 1000)), "$": ("$", Fraction(1)), "cent": ("$", Fraction(1, 100)),
    "in": ("ft", Fraction(1, 12)), "ft": ("ft", Fraction(1)), "yd": ("ft", Fraction(3)), "mi": ("ft", Fraction(5280)),
}  # fmt: skip
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(?:\\text ?\{ ?([A-Za-z]+)\.? ?,? ?(?:and)? ?\}|([A-Za-z]+))")
_PARTS = re.compile(rf"{_PART.pattern}(?:,? ?(?:and |\\text ?\{{ ?and ?\}})? ?{_PART.pattern})+")
_ARC = re.compile(r"(-?)([0-9]{1,3}) ?\^ ?\{? ?\\circ ?\}? ?([0-9]{1,2}) ?'(?: ?([0-9]{1,2}) ?(?:''|\"))?")
_CHINESE = re.compile(r"\s*[\u4e00-\u9fff]{1,6}\s*")
_SHARE = re.compile(r"^(\s*(?:\\text ?\{ ?)?)of (?:all the|the|all|an?|his|her|their|its|my|your) ")  # 3/8 of the cake
_NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen twenty".split()
    )
}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and what it counts.

    Attributes:
        value: exact.
        unit: in one spelling ("cm^2", "$", "deg"), "%" for percent, "" without one.
    """

    value: Fraction
    unit: str = ""


def number(text: str) -> Fraction | None:
    """Return the exact value of a number without a unit, or None."""
    text = text.strip()
    if not text or len(text) > _MAX_DIGITS:
        return None
    while text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        text = text[1:-1].strip()
    if _PLAIN.fullmatch(text):
        return Fraction(text)
    if _THOUSANDS.fullmatch(text):
        return Fraction(text.replace(",", "").replace(" ", ""))
    if _EUROPEAN.fullmatch(text):
        return Fraction(text.replace(".", "").replace(",", "."))
    return _fraction(text) or _scientific(text)


def european_decimal(text: str) -> Fraction | None:
    """Return the value of a decimal with a comma, such as `3,14`, which could also be two numbers, else None."""
    if re.fullmatch(r"[+-]?(?:0,[0-9]+|[0-9]+,(?:[0-9]{1,2}|[0-9]{4,}))", text.strip(), re.ASCII):
        return Fraction(text.strip().replace(",", "."))
    return None


def is_expansion(decimal: str, value: Fraction) -> bool:
    """Whether a decimal of 12 significant digits or more is a fraction's endless expansion, cut off or rounded.

    A number that a decimal can write exactly has no such expansion and must be met exactly.
    """
    match = _LONG_DECIMAL.fullmatch(decimal.strip())
    if match is None or len((match["whole"] + match["digits"]).lstrip("0")) < _FULL_PRECISION:
        return False
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    unit, off = Fraction(1, 10 ** len(match["digits"])), abs(value) - abs(Fraction(decimal.strip()))
    same_sign = (value < 0) == decimal.strip().startswith("-")
    return rest > 1 and same_sign and -unit / 2 <= off < unit


def quantity(text: str) -> Quantity | None:
    """Return a number with its unit, or None for anything else."""
    if text.casefold() in _NUMBER_WORDS:
        return Quantity(Fraction(_NUMBER_WORDS[text.casefold()]))
    if (degrees := _degrees(text)) is not None:
        return Quantity(degrees, "deg")
    core, unit = split_unit(text)
    value = number(core)
    if value is None:
        return _sum_of_parts(text)
    scale, _, rest = unit.partition(" ")
    if scale in _SCALES:
        return Quantity(value * _SCALES[scale], rest)
    return Quantity(value, unit)


def split_unit(text: str) -> tuple[str, str]:
    """Split off a currency sign, a percent sign or a unit; `("...", "")` where there is none."""
    text = text.strip()
    if match := _CURRENCY.match(text):
        core, unit = split_unit(match[1] + text[match.end() :])
        scale = unit.split(" ")[0] if unit.split(" ")[0] in _SCALES else ""
        return core, f"{scale} $".strip()
    match = _UNIT.match(text)
    if match is None or not match["value"]:
        return text, ""
    unit = _unit(match["unit"])
    return (text, "") if unit is None else (match["value"].strip(), unit)


def same_quantity(gold: Quantity, answer: Quantity) -> bool:
    """Whether two quantities are the same; a unit that only one of them names is taken as understood.

    A percentage p equals the number p as well as p/100, the latter alone for a share below 1.
    Two different units are compared by conversion.
    """
    if "%" in (gold.unit, answer.unit) and gold.unit != answer.unit:
        percent, other = (gold, answer) if gold.unit == "%" else (answer, gold)
        if other.unit:
            return False
        if percent is gold or abs(other.value) >= 1:  # 0.5 % is not 0.5, where that is a share
            return percent.value == other.value or (percent.value / 100 == other.value and abs(other.value) <= 1)
        return percent.value / 100 == other.value
    if not gold.unit or not answer.unit or gold.unit == answer.unit:
        return gold.value == answer.value
    return _in_base_units(gold) == _in_base_units(answer)


def _fraction(text: str) -> Fraction | None:
    if match := _FRACTION.fullmatch(text):
        top, bottom = number(match[2]), number(match[3])
        sign = -1 if match[1] == "-" else 1
        return None if top is None or not bottom else sign * top / bottom
    if match := _SLASH.fullmatch(text):
        parts = [part for part in match.groups() if part is not None]
        sign = -1 if match[5] == "-" else 1
        top, bottom = number(parts[-2]), number(parts[-1])
        return None if top is None or not bottom else sign * top / bottom
    if match := _MIXED.fullmatch(text):
        top, bottom = (int(match[3]), int(match[4])) if match[3] else (int(match[5]), int(match[6]))
        if not bottom:
            return None
        return (-1 if match[1] == "-" else 1) * (int(match[2]) + Fraction(top, bottom))
    if match := _REPEATING.fullmatch(text) or _DOTTED.fullmatch(text):
        whole, fixed, cycle = match[2] or "0", match[3], match[4]
        if len(fixed + cycle) > _MAX_EXPONENT:
            return None
        value = Fraction(int(cycle), (10 ** len(cycle) - 1) * 10 ** len(fixed)) + Fraction(f"{whole}.{fixed or 0}")
        return -value if match[1] == "-" else value
    return None


def _scientific(text: str) -> Fraction | None:
    match = _SCIENTIFIC.fullmatch(text)
    if match is None:
        return None
    exponent = int(match[2] or match[3] or match[4])
    return Fraction(match[1].replace(",", ".")) * Fraction(10) ** exponent if abs(exponent) <= _MAX_EXPONENT else None


def _unit(text: str) -> str | None:
    """Return a unit in its one spelling, or None where the text is no unit but prose or variables."""
    if re.sub(r"\\text|[{} ]", "", text).lower() in ("%", "percent", "pct", "percentage"):
        return "%"
    if _CHINESE.fullmatch(text):
        return text.strip()
    text = _SHARE.sub(r"\1", text)
    loose = re.sub(r"\\text ?\{[^{}]*\}", " ", text)
    words = _UNIT_WORDS.findall(re.sub(r"\\(?:text|circ|mu)", " ", text))
    if len(words) > 6 or any(word.lower() in _NO_UNITS for word in words) or "%" in text:
        return None
    for word in _UNIT_WORDS.findall(re.sub(r"\\(?:circ|mu)", " ", loose)):
        is_first = text.startswith(word) or re.search(rf"(?:/|\\circ ?\}}?) ?{word}(?![A-Za-z])", text) is not None
        if len(word) == 1 and (word not in _LETTER_UNITS or not is_first):
            return None
    body = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", text)
    body = re.sub(r"\^ ?\{? ?\\circ ?\}?|\\circ", " degrees ", body)
    tokens = re.findall(r"[A-Za-z]+|\^ ?\{?(-?[0-9])\}?|[$/\u20ac\u00a3]", body)
    found = [m[0] for m in re.finditer(r"[A-Za-z]+|\^ ?\{?-?[0-9]\}?|[$/\u20ac\u00a3]", body)]
    if not tokens or found[0].startswith("^"):
        return None
    spelt = [_SPELT.get(t, _SPELT.get(t.lower(), t)) if t.isalpha() else re.sub(r"[ {}]", "", t) for t in found]
    if spelt[0] == "square" and len(spelt) > 1:
        spelt = [*spelt[1:2], "^2", *spelt[2:]]
    if spelt[0] == "cubic" and len(spelt) > 1:
        spelt = [*spelt[1:2], "^3", *spelt[2:]]
    return " ".join(spelt).replace(" ^", "^")


def _sum_of_parts(text: str) -> Quantity | None:
    """Return what `2 hours 30 minutes` comes to in the smallest unit it names, money in dollars, or None."""
    if not _PARTS.fullmatch(text.strip()):
        return None
    parts = [(Fraction(amount), (inside or word).lower()) for amount, inside, word in _PART.findall(text)]
    units = [_SPELT.get(name, name) for _, name in parts]
    known = [_FACTORS[unit] for unit in units if unit in _FACTORS]
    factors = [factor for _, factor in known]
    if len(known) < len(parts) or len({base for base, _ in known}) > 1 or sorted(factors, reverse=True) != factors:
        return None
    total = sum(amount * factor for (amount, _), factor in zip(parts, factors, strict=True))
    return Quantity(total, "$") if known[0][0] == "$" else Quantity(total / factors[-1], units[-1])


def _degrees(text: str) -> Fraction | None:
    """Return the value of degrees with minutes and perhaps seconds of arc, or None."""
    match = _ARC.fullmatch(text.strip())
    if match is None:
        return None
    value = int(match[2]) + Fraction(int(match[3]), 60) + Fraction(int(match[4] or 0), 3600)
    return -value if match[1] else value


def _in_base_units(quantity: Quantity) -> tuple[Fraction, str]:
    name, _, power = quantity.unit.partition("^")
    base, factor = _FACTORS.get(name, (name.rstrip("s") or name, Fraction(1)))
    exponent = int(power) if power.lstrip("-").isdigit() else 1
    return quantity.value * factor**exponent, f"{base}^{exponent}"
