"""What a text says its answer is, outside of boxes: "the answer is", a heading, or the last sentence's conclusion."""

from __future__ import annotations

import itertools
import re

_PHRASE = re.compile(
    r"(?:^|(?<=[\s*(]))(?:the\s+)?"
    r"(?:(?:(?:correct|final|right|best)\s+)*answer(?:\s+choice)?|(?:(?:correct|final|right|best)\s+)+(?:option|choice)"
    r"|(?:option|choice)(?=\s+is\b))"
    r"(?:\s+(?:to [^.:=\n]{1,60}|is|would be|equals))?"
    r"(?:\*\*)?\s*(?::|=|\bis\b:?|(?<=is)|(?<=be)|(?<=equals)|(?<=final answer)(?=\s\([A-J]\)))\s*(?:\*\*)?\s*(?!not\b)"
    # A heading, or a line in bold, that says no more than "Answer"; an abbreviation at the beginning of a line.
    r"|^(?:#{1,6}[ \t]*|\*\*)(?:final[ \t]+)?(?:answer|result):?(?:\*\*)?:?[ \t]*\n+\s*|^ans[.:]\s*"
    # French, Spanish, Italian, Portuguese, German, Chinese, Japanese, Russian
    r"|\b(?:r\u00e9ponse|respuesta|risposta|resposta)(?: (?:finale?|correct[ea]))? ?(?:est|es|\u00e8|\u00e9|:)\s*"
    r"(?:\*\*)?\s*"
    r"|\b(?:die )?antwort(?: ist| lautet|:)\s*(?:\*\*)?\s*"
    r"|(?:\u6700\u7ec8)?\u7b54\u6848 ?(?:\u662f|\u4e3a|\u70ba)?\s*[:\uff1a]?\s*(?:\*\*)?\s*"
    r"|\u9009\s*[:\uff1a]?\s*(?=[A-J])"
    r"|\u7b54\u3048\s*(?:\u306f|[:\uff1a])\s*|\b\u043e\u0442\u0432\u0435\u0442\s*[:\u2014-]\s*(?:\*\*)?\s*",
    re.IGNORECASE | re.MULTILINE,
)
_CORRECT_OPTION = re.compile(
    r"\b(?:option|choice|answer) \(?([A-J])\)? is (?:the )?(?:correct|right)(?: (?:answer|option|choice|one))?\b",
    re.IGNORECASE,
)
_ENDING = re.compile(r"(?:\u3067\u3059|\u3067\u3042\u308b|\u3068\u306a\u308b|\u3060)$")  # Japanese "is"
_HASHES = re.compile(r"^\s*####\s*(.+?)\s*$", re.MULTILINE)
_SENTENCE_END = re.compile(r"\u3002|[.!?](?=\s+[A-Z\\(]|\s*$)|\n|\*\*(?=[\s.]|$)")
_CORRECTION = re.compile(
    r"\b(?:wait|actually|correction|corrected|mistake|wrong|hold on|scratch that|sorry|instead|oops)\b", re.IGNORECASE
)
_DOUBT = re.compile(
    r"\W*(?:or(?! (?:equivalently|simply|in other words))|alternatively|maybe|perhaps|possibly|it (?:may|might|could)|"
    r"(?:may|might|could) also)\b",
    re.IGNORECASE,
)
_CONCLUDES = re.compile(
    r"(?:so|therefore|thus|hence|in total|altogether|in conclusion|finally|overall|consequently)\b|\u2234",
    re.IGNORECASE,
)
_CONCLUDED_WORD = re.compile(
    r"[^.:]*\b(?:is|are|was|were|be)\s+(?:an?\s+|the\s+)?\**([A-Z][a-z]+|true|false|odd|even|yes|no)\**[.!]?", re.DOTALL
)
_CONCLUDED_EQUATION = re.compile(r"\u2234\s*([^.]+)\.?|\$?\s*=\s*([^=$]+?)\s*\$?\.?")
_UNSURE = re.compile(
    r"\b(?:not|cannot|never|no|or|if|unless|maybe|perhaps|about|around|approximately|roughly|between|least|most|more|"
    r"less|fewer|either|neither|except|could|might|may|should|would|plus|minus|times|questions?|asks|where|when|what|"
    r"which|how)\b|n't|\?",
    re.IGNORECASE,
)
_IN_WORDS = re.compile(r"[\w\s.,'!$\u20ac\u00a3%/*:-]+")  # no formula, no program
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")
_CONCLUDED_FORMULA = re.compile(r"[^$]*\b(?:is|are|equals?|be|get|obtain|have|gives)\s*\$([^$]+)\$\s*[.!]?")
_BOLD = re.compile(r"\*\*([^*\n]+?)[.:]?\*\*")
_NUMBER = re.compile(r"[$\u20ac\u00a3]?-?(?:[0-9][0-9,]*)?\.?[0-9]+(?:/[0-9]+)?%?(?![\w/:^])")
_MAX_TAIL = 2000
_MAX_PHRASES = 32


def stated_answer(text: str) -> str | None:
    """Return what follows the last `####` line or the last "the answer is", up to the end of its sentence, or None.

    None, too, where a text states several different answers, unless it takes back all but the last, or offers another
    behind the last.
    """
    hashes = _HASHES.findall(text)
    if hashes:
        return hashes[-1] if len(set(hashes)) == 1 else None
    found: dict[str, tuple[int, int, str]] = {}  # by the answer without spaces: first and last place, answer
    options = {match[1].upper(): match for match in _CORRECT_OPTION.finditer(text)}
    phrases = list(itertools.islice(_PHRASE.finditer(text), _MAX_PHRASES + 1))
    for match in phrases:
        tail = text[match.end() : match.end() + _MAX_TAIL]
        if _PHRASE.match(tail):  # "Final answer: the answer is"
            continue
        sentence = _SENTENCE_END.search(tail)
        stop = sentence.start() if sentence else len(tail)
        if answer := _ENDING.sub("", tail[:stop].strip(" \t:*")):
            key = re.sub(r"[\s$*]+", "", answer)
            found[key] = found.pop(key, (match.start(),))[0], match.end() + stop, answer
    if not found and len(options) == 1:
        return next(iter(options))
    if not found or len(phrases) > _MAX_PHRASES:
        return None
    *others, (begin, end, answer) = found.values()
    if (others and not _CORRECTION.search(text, others[-1][1], begin)) or _DOUBT.match(text, end):
        return None
    return answer


def concluded_answer(text: str, *, is_answer: bool) -> str | None:
    """Return what the last sentence of a text comes to, or None.

    That is what stands in bold there; else the formula that it ends with, or its only number, if it begins as a
    conclusion does ("So ...") or is all that was given as the answer. A sentence that asks, denies or is unsure
    concludes nothing.

    Args:
        text: outside the thinking.
        is_answer: it is what an answer block holds.
    """
    sentences = [part for part in _SENTENCES.split(text[-_MAX_TAIL:].strip()) if part]
    if not sentences or _UNSURE.search(sentences[-1]):
        return None
    last = sentences[-1]
    if match := _CONCLUDED_EQUATION.fullmatch(last):
        return (match[1] or match[2]).strip()
    if _CONCLUDES.match(last) and (match := _CONCLUDED_FORMULA.fullmatch(last) or _CONCLUDED_WORD.fullmatch(last)):
        return match[1].strip()
    if not _IN_WORDS.fullmatch(last):
        return None
    bold, numbers = _BOLD.findall(last), _NUMBER.findall(last)
    if len(bold) == 1 and not any(char.isdigit() for char in _BOLD.sub("", last)):
        return bold[0].strip()
    if len(numbers) != 1 or any(char.isdigit() for char in _NUMBER.sub("", last)):
        return None
    is_prose = len(re.findall(r"[A-Za-z]{2,}", last)) > 2
    is_all = is_answer and len(sentences) == 1
    return numbers[0] if is_prose and (is_all or _CONCLUDES.match(last)) else None
