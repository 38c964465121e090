r"""Mathematical notation made uniform: Unicode, spacing, and the plain spellings of what LaTeX writes with a command.

All functions here are linear in the text, or nearly so.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

MAX_DEPTH = 24  # brackets within brackets; no answer nests deeper, hostile text does
BIDI_CONTROLS = re.compile("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u061c]")

_INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff\u00ad]")
_SUPERSCRIPTS = {
    "\u2070": "0", "\u00b9": "1", "\u00b2": "2", "\u00b3": "3", "\u2074": "4", "\u2075": "5", "\u2076": "6",
    "\u2077": "7", "\u2078": "8", "\u2079": "9", "\u207b": "-", "\u207a": "+", "\u207f": "n",
}  # fmt: skip
_SUBSCRIPTS = {chr(0x2080 + digit): str(digit) for digit in range(10)}
_SYMBOLS = {
    "\u2212": "-", "\u2013": "-", "\u2010": "-", "\u2011": "-", "\uff0d": "-", "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u22c5": r"\cdot ", "\u00f7": "/", "\u2215": "/", "\u2044": "/", "\u03c0": r"\pi ", "\u221e": r"\infty ",
    "\u2264": r"\le ", "\u2265": r"\ge ", "\u2260": r"\ne ", "\u222a": r"\cup ", "\u2229": r"\cap ", "\u2208": r"\in ",
    "\u00b1": r"\pm ", "\u00b0": r"^\circ ", "\u221b": r"\sqrt[3]", "\u2205": r"\emptyset ", "\u211d": r"\mathbb{R}",
    "\u03b1": r"\alpha ", "\u03b2": r"\beta ", "\u03b8": r"\theta ", "\u03bb": r"\lambda ", "\u03c6": r"\phi ",
    "\u2032": "'", "\u2248": r"\approx ", "\u2220": r"\angle ", "\u201c": '"', "\u201d": '"', "\u2019": "'",
    "\u27e8": r"\langle ", "\u27e9": r"\rangle ",
}  # fmt: skip
_RUN = re.compile(f"[{''.join(_SUPERSCRIPTS)}]+|[{''.join(_SUBSCRIPTS)}]+")
_ROOT = re.compile("\u221a\\s*(\\([^()]*\\)|\\{[^{}]*\\}|[0-9.]+|[A-Za-z])")
_VULGAR = re.compile("(?<=[0-9]) ?([\u00bc-\u00be\u2150-\u215e])|([\u00bc-\u00be\u2150-\u215e])")
_PLAIN_ROOT = re.compile(r"(?<![\\A-Za-z])(sqrt|cbrt)\s*\(")
_SIZES = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|mathop|hspace\{[^{}]*\})(?![A-Za-z])\.?"
)
_ONE_LETTER = re.compile(r"\\(?:mathrm|mathit|operatorname) ?\{ ?([ei]) ?\}")  # the constants, set upright
_TEXT_NUMBER = re.compile(r"\\text ?\{ ?([+-]?[0-9][0-9.,]*) ?\}")
_LETTER_LIST = re.compile(r"\\text ?\{ ?(\(?[A-Z]\)?(?:(?:, ?and|,| and) ?\(?[A-Z]\)?)+) ?\}")
_OPEN_INTERVAL = re.compile(r"([\[\]]) ?([^\[\]()]+?) ?[;,] ?([^\[\]()]+?) ?([\[\]])")  # ]a, b[
_PER = re.compile(r"\\text ?\{ ?([A-Za-z]+) ([A-Za-z]+) ?\^ ?\{? ?-([12]) ?\}? ?\}")  # m s^{-1}
_DOTS = re.compile(r"(\.[0-9]*)\\dot ?\{?([0-9])\}?(?:([0-9]*)\\dot ?\{?([0-9])\}?)?")  # 0.\dot{1}\dot{8}
_CYCLE = re.compile(r"^([+-]?[0-9]*\.[0-9]*) ?\(([0-9]+)\)$")  # 0.(18)
_BRACED_COLON = re.compile(r"\s*\{ *: *\}\s*")
_BRACED_COMMA = re.compile(r"\s*\{ *, *\}\s*")
_POWER_THEN_NUMBER = re.compile(r"(\^(?:\{[0-9]+\}|[0-9])) (?=[0-9])")
_ABSOLUTE = re.compile(r"\| ?([a-y]) ?\| ?(<|>|\\le(?![a-z])|\\ge(?![a-z])) ?([^<>=|]+)")
_WITHOUT = re.compile(r"([(\[])([^,()\[\]]+),([^,()\[\]]+)([)\]]) ?\\setminus ?\\\{([^,{}]+)\\\}")
_LETTERS = "abchjklmnopqrstuvwxyz"
_LETTER = re.compile(r"\\[A-Za-z]+|(?<![A-Za-z])[A-Za-z](?![A-Za-z]{2})")
_GAPS = re.compile(r"(?<!\\)\\[,;:!>]|\\(?:quad|qquad|thinspace|enspace)(?![A-Za-z])|~|(?<!\\)\\ |\s+")
_RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "neq": "ne", "leq": "le",
    "geq": "ge", "leqslant": "le", "geqslant": "ge", "lt": "<", "gt": ">", "lbrace": r"\{", "rbrace": r"\}",
    "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")", "to": "rightarrow", "varnothing": "emptyset",
    "degree": r"^\circ", "degrees": r"^\circ", "fbox": "boxed", "mbox": "text", "textrm": "text", "textbf": "text",
    "textit": "text", "textnormal": "text", "textsf": "text", "texttt": "text", "mathrm": "text", "mathbf": "text",
    "mathit": "text", "mathsf": "text", "rm": "", "bf": "", "it": "", "operatorname": "text", "boldsymbol": "text",
    "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "lor": r"\text{ or }", "vee": r"\text{ or }",
    "land": r"\text{ and }", "wedge": r"\text{ and }", "setminus": r"\setminus", "backslash": r"\setminus",
    "ast": "*", "colon": ":", "dots": r"\ldots", "cdots": r"\ldots", "euro": "EUR", "pounds": "GBP",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")
_FRACTION = re.compile(r"\\frac\s*(?:([0-9]|\\pi(?![a-z]))|\{([^{}]*)\})\s*(?:([0-9A-Za-z])|\{([^{}]*)\}|(\\pi))")
_ROOT_DIGIT = re.compile(r"\\sqrt\s*([0-9A-Za-z])(?![0-9])")
_ROOT_DIGITS = re.compile(r"\\sqrt\s*([0-9]+)")
_POWER = re.compile(r"\^\s*(-?[0-9]{2,}(?![0-9])|-[0-9A-Za-z])")
_POWER_IN_PARENTHESES = re.compile(r"\^\s*\(([^()]*)\)")
_INFINITY = re.compile(
    r"(?:\\text ?\{ ?)?(?:diverges (?:to|towards) ?(?:\} ?)?)?(?:(negative|minus|-)|positive|plus|\+)? ?"
    r"(?:infinity|\\infty) ?\}?",
    re.IGNORECASE,
)
_PHANTOM = re.compile(r"\\[hv]?phantom\s*\{[^{}]*\}")
_ROW_GAP = re.compile(r"\\\\ ?\[ ?[0-9.]+ ?(?:pt|em|ex|mm|cm)\]")
_PLAIN_WORDS = {
    "infinity": r"\infty ", "infty": r"\infty ", "inf": r"\infty ", "oo": r"\infty ", "pi": r"\pi ",
    "sin": r"\sin ", "cos": r"\cos ", "tan": r"\tan ", "cot": r"\cot ", "sec": r"\sec ", "csc": r"\csc ",
    "arcsin": r"\arcsin ", "arccos": r"\arccos ", "arctan": r"\arctan ", "log": r"\log ", "ln": r"\ln ",
    "exp": r"\exp ", "theta": r"\theta ", "alpha": r"\alpha ", "beta": r"\beta ", "lambda": r"\lambda ",
    "union": r"\cup ", "cup": r"\cup ", "degrees": r"^\circ ", "degree": r"^\circ ", "deg": r"^\circ ",
}  # fmt: skip
_WORD = re.compile(r"(?<![\\A-Za-z{])([A-Za-z]+)(?![A-Za-z}])")
_UNION = re.compile(r"([)\]]) ?U ?([(\[])")
_BUILDER = re.compile(r"^\\\{ ?[a-z] ?(?:\\in ?\\mathbb ?\{?R\}? ?)?[|:] ?([^|:]+)\\\}$")
_NO_SOLUTION = re.compile(r"^(?:\\text ?\{)? ?[Nn]o (?:real )?solutions? ?\}?$")
_CONSTANT = re.compile(r"\+ ?[cC]$")  # of integration
_TIGHT = re.compile(r"\\!(?![A-Za-z])")
_POSITIVE = re.compile(r"\\mathbb ?\{?R\}? ?(?:\^ ?\{? ?\+ ?\}?|_\{ ?> ?0 ?\})")
_REALS_WITHOUT = re.compile(
    r"\\mathbb ?\{?R\}? ?\\setminus ?(?:\\\{([^,{}]+)\\\}|([(\[])([^,()\[\]]+),([^,()\[\]]+)([)\]]))"
)
_REALS = re.compile(r"^(?:\\mathbb ?\{?R\}?|(?:\\text ?\{)? ?all real (?:numbers|values) ?\}?)$")
_BRACKET = re.compile(r"\\.|[{}()\[\]]")
_NESTING = re.compile(r"\\begin\s*\{\w+\*?\}|\\end\s*\{\w+\*?\}|\\[{}]|[{}()\[\]]")


def clean(text: str) -> str:
    """Return an answer in uniform LaTeX: one spelling for each symbol, single spaces, no sizes.

    What `\\text{...}` holds is kept as it stands.
    """
    text = _clean_unicode(text)
    text = _PHANTOM.sub(" ", _ROW_GAP.sub(r"\\\\", text))
    text = _ONE_LETTER.sub(r"\1", _SIZES.sub("", text))
    text = _COMMAND.sub(lambda m: _renamed(m[1]), text)
    text = text.replace("\\$", "$").replace("\\%", "%").replace("\\(", "").replace("\\)", "").replace("$$", "$")
    text = text.replace("**", "^").replace("<=", r"\le ").replace(">=", r"\ge ").replace("!=", r"\ne ")
    text = text.replace("+/-", r"\pm ").replace("+-", r"\pm ").replace("...", r"\ldots ")
    text = _BRACED_COLON.sub(":", _BRACED_COMMA.sub(",", text))
    text = re.sub(r"^\s*\\approx(?![A-Za-z])", "", text)
    text = re.sub(r",\s?\\!\s?", ",", text)
    text = re.sub(r"\\\{\s*\\\}", r"\\emptyset", text)
    text = _PER.sub(
        lambda m: f"\\text{{{m[1]}/{m[2]}{'^2' if m[3] == '2' else ''}}}", _GAPS.sub(" ", _TIGHT.sub("", text))
    )
    text = _TEXT_NUMBER.sub(r"\1", _GAPS.sub(" ", text)).strip()
    text = _plain_roots(text)
    for _ in range(2):
        text = _FRACTION.sub(_fraction, text)
    text = _ROOT_DIGITS.sub(r"\\sqrt{\1}", text)
    text = _ROOT_DIGIT.sub(r"\\sqrt{\1}", text)
    text = _POWER_IN_PARENTHESES.sub(r"^{\1}", text)
    text = _POWER.sub(r"^{\1}", text)
    text = _POWER_THEN_NUMBER.sub(r"\1 \\cdot ", text)
    text = _UNION.sub(r"\1 \\cup \2", text)
    text = _WITHOUT.sub(r"\1\2,\5) \\cup (\5,\3\4", text)
    text = _NO_SOLUTION.sub(r"\\emptyset", text)
    if match := _INFINITY.fullmatch(text):
        text = "-\\infty" if match[1] else "\\infty"
    if match := _LETTER_LIST.fullmatch(text):
        text = match[1]
    if match := _ABSOLUTE.fullmatch(text):
        text = _without_absolute(*match.groups())
    if text[:1] == "]" or text[-1:] == "[":
        text = _OPEN_INTERVAL.sub(_with_round_brackets, text)
    text = _CYCLE.sub(r"\1\\overline{\2}", _DOTS.sub(r"\1\\overline{\2\3\4}", text))
    text = _BUILDER.sub(r"\1", text)
    text = _POSITIVE.sub(r"(0,\\infty)", _REALS_WITHOUT.sub(_without_reals, text))
    text = _REALS.sub(r"(-\\infty,\\infty)", text)
    text = outside_text(text, lambda part: _WORD.sub(lambda m: _PLAIN_WORDS.get(m[1], m[1]), part))
    return re.sub(r"\s+", " ", text).strip()


def distinct_case(left: str, right: str) -> tuple[str, str]:
    """Rename capitals of which the small letter occurs as well: math-verify takes `R` and `r` for the same symbol.

    Returns both texts as they are where every letter occurs in one case alone, or no letter is left to rename to.
    """
    if _CONSTANT.search(left) and _CONSTANT.search(right):
        left, right = _CONSTANT.sub("+ C", left), _CONSTANT.sub("+ C", right)
    used = {token for text in (left, right) for token in _LETTER.findall(text) if len(token) == 1}
    clashes = sorted(token for token in used if token.isupper() and token.lower() in used)
    free = [letter for letter in _LETTERS if letter not in used and letter.upper() not in used]
    if not clashes or len(clashes) > len(free):
        return left, right
    new = dict(zip(clashes, free, strict=False))
    return _LETTER.sub(lambda m: new.get(m[0], m[0]), left), _LETTER.sub(lambda m: new.get(m[0], m[0]), right)


def squeeze(text: str) -> str:
    """Return cleaned text without spaces but those between digits, for comparison letter by letter."""
    return re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", text)


def outside_text(text: str, change: Callable[[str], str]) -> str:
    r"""Apply `change` to the parts that no `\text{...}` holds."""
    parts = re.split(r"(\\text\s*\{[^{}]*\})", text)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


def is_tame(text: str) -> bool:
    """Whether brackets nest within bounds and close in order of their number (half-open intervals count as closed)."""
    depth = deepest = 0
    for match in _BRACKET.finditer(text):
        if match[0] in "{([":
            depth += 1
            deepest = max(deepest, depth)
        elif match[0] in "})]":
            depth -= 1
            if depth < 0:
                return False
    return deepest <= MAX_DEPTH and depth == 0


def split_top(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split where the separator stands outside all brackets and environments; the separators are left out."""
    inside = bytearray(len(text) + 1)
    depth = begin = 0
    for match in _NESTING.finditer(text):
        opens = match[0].startswith("\\begin") or match[0][-1] in "{(["  # of "\\end{x}" the last letter is "}"
        if opens:
            begin = match.start() if depth == 0 else begin
            depth += 1
        elif depth:
            depth -= 1
            if depth == 0:
                inside[begin : match.end()] = b"\1" * (match.end() - begin)
    parts, begin = [], 0
    for match in separator.finditer(text):
        if not inside[match.start()]:
            parts.append(text[begin : match.start()].strip())
            begin = match.end()
    return [*parts, text[begin:].strip()]


def strip_delimiters(text: str) -> str:
    """Return the text without one pair of math delimiters around the whole, a full stop and a dollar sign."""
    text = text.strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
            inside = text[len(opening) : -len(closing)].strip()
            if opening not in inside:
                text = inside
            break
    if text.startswith("**") and text.endswith("**") and text.count("**") == 2:
        text = text[2:-2].strip()
    text = text if text.endswith("\\\\") else text.removesuffix("\\")
    if text.endswith(("...", "\\ldots", "\\dots")):
        return text
    return text.rstrip(".,; ") if not text.endswith("\\.") else text[:-2]


def _clean_unicode(text: str) -> str:
    text = _INVISIBLE.sub("", text)
    text = _VULGAR.sub(lambda m: _vulgar(m[1] or m[2], mixed=bool(m[1])), text)
    text = _RUN.sub(lambda m: _raised_or_lowered(m[0]), text)
    text = _ROOT.sub(lambda m: "\\sqrt{" + m[1].strip("(){}") + "}", text)
    text = "".join(_SYMBOLS.get(char, char) for char in text)
    return unicodedata.normalize("NFKC", text)


def _with_round_brackets(match: re.Match[str]) -> str:
    opening, low, high, closing = match.groups()
    return f"{'(' if opening == ']' else '['}{low},{high}{')' if closing == '[' else ']'}"


def _without_reals(match: re.Match[str]) -> str:
    r"""Write `\mathbb{R} \setminus \{c\}`, or without an interval, as two intervals."""
    if match[1]:
        return rf"(-\infty,{match[1]}) \cup ({match[1]},\infty)"
    ends = "]" if match[2] == "(" else ")", "[" if match[5] == ")" else "("
    return rf"(-\infty,{match[3]}{ends[0]} \cup {ends[1]}{match[4]},\infty)"


def _without_absolute(symbol: str, operator: str, bound: str) -> str:
    """Write `|x| < c` as `-c < x < c`, and `|x| > c` as two intervals."""
    if operator in ("<", "\\le"):
        return f"-({bound}) {operator} {symbol} {operator} {bound}"
    return (
        rf"(-\infty,-({bound})) \cup ({bound},\infty)"
        if operator == ">"
        else (rf"(-\infty,-({bound})] \cup [{bound},\infty)")
    )


def _vulgar(char: str, *, mixed: bool) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", char).partition("\u2044")
    return (" " if mixed else "") + (f"\\frac{{{top}}}{{{bottom}}}" if bottom else char)


def _raised_or_lowered(run: str) -> str:
    if run[0] in _SUPERSCRIPTS:
        return "^{" + "".join(_SUPERSCRIPTS[char] for char in run) + "}"
    return "_{" + "".join(_SUBSCRIPTS[char] for char in run) + "}"


def _renamed(name: str) -> str:
    new = _RENAMED.get(name)
    if new is None:
        return "\\" + name
    return "\\" + new if new.isalpha() and new not in ("EUR", "GBP") else new


def _fraction(match: re.Match[str]) -> str:
    top = match[1] if match[1] is not None else match[2]
    bottom = next(part for part in match.groups()[2:] if part is not None)
    return f"\\frac{{{top}}}{{{bottom}}}"


def _plain_roots(text: str) -> str:
    for _ in range(8):
        match = _PLAIN_ROOT.search(text)
        if match is None:
            break
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if depth:
            break
        root = "\\sqrt" if match[1] == "sqrt" else "\\sqrt[3]"
        text = f"{text[: match.start()]}{root}{{{text[match.end() : end - 1]}}}{text[end:]}"
    return text
