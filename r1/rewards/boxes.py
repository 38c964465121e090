r"""Where an answer stands in a turn: boxes, answer tags, "the answer is"."""

from __future__ import annotations

import itertools
import re
from typing import Literal

from r1.turns import after_thinking, last_answer_block

Extraction = Literal["auto", "answer_tag", "boxed", "text"]
EXTRACTIONS: tuple[Extraction, ...] = ("auto", "answer_tag", "boxed", "text")

_MAX_BOXES = 16  # different ones; more is no list of answers but a guess at all of them
_TOKEN = re.compile(r"\\f?boxed\s*\{|\\.|[{}]", re.DOTALL)
_OPENS = re.compile(r"\\f?boxed\s*\{")
_PHRASE = re.compile(
    r"(?:^|(?<=[\s*(]))(?:the\s+)?"
    r"(?:(?:(?:correct|final|right|best)\s+)*answer(?:\s+choice)?|(?:(?:correct|final|right|best)\s+)+(?:option|choice)"
    r"|(?:option|choice)(?=\s+is\b))"
    r"(?:\s+(?:to [^.:=\n]{1,60}|is|would be|equals))?"
    r"(?:\*\*)?\s*(?::|=|\bis\b:?|(?<=is)|(?<=be)|(?<=equals))\s*(?:\*\*)?\s*(?!not\b)"
    r"|\b(?:r\u00e9ponse|respuesta|risposta|resposta)(?: (?:finale?|correct[ea]))? ?(?:est|es|\u00e8|\u00e9|:)\s*"
    r"|\b(?:die )?antwort(?: ist| lautet|:)\s*|(?:\u6700\u7ec8)?\u7b54\u6848 ?(?:\u662f|\u4e3a|\u70ba)?\s*[:\uff1a]?\s*"
    r"|\b\u043e\u0442\u0432\u0435\u0442\s*[:\u2014-]\s*",
    re.IGNORECASE,
)
_HASHES = re.compile(r"^\s*####\s*(.+?)\s*$", re.MULTILINE)
_SENTENCE_END = re.compile(r"\u3002|[.!?](?=\s+[A-Z\\(]|\s*$)|\n|\*\*(?=[\s.]|$)")
_CORRECTION = re.compile(
    r"\b(?:wait|actually|correction|corrected|mistake|wrong|hold on|scratch that|sorry|instead|oops)\b", re.IGNORECASE
)
_DOUBT = re.compile(
    r"\W*(?:or|alternatively|maybe|perhaps|possibly|it (?:may|might|could)|(?:may|might|could) also)\b", re.IGNORECASE
)
_CONCLUDES = re.compile(
    r"(?:so|therefore|thus|hence|in total|altogether|in conclusion|finally|overall|consequently)\b", re.IGNORECASE
)
_UNSURE = re.compile(
    r"\b(?:not|cannot|never|no|or|if|unless|maybe|perhaps|about|around|approximately|roughly|between|least|most|more|less|fewer|"
    r"either|neither|except|could|might|may|should|would|plus|minus|times|questions?|asks|where|when|what|which|how)\b"
    r"|n't|\?",
    re.IGNORECASE,
)
_IN_WORDS = re.compile(r"[\w\s.,'!$\u20ac\u00a3%/*:-]+")  # no formula, no program
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")
_CONCLUDED_FORMULA = re.compile(r"[^$]*\b(?:is|are|equals?|be|get|obtain|have|gives)\s*\$([^$]+)\$\s*[.!]?")
_BOLD = re.compile(r"\*\*([^*\n]+?)[.:]?\*\*")
_NUMBER = re.compile(r"[$\u20ac\u00a3]?-?(?:[0-9][0-9,]*)?\.?[0-9]+(?:/[0-9]+)?%?(?![\w/:^])")
_MAX_TAIL = 2000
_MAX_PHRASES = 32


def boxes(text: str) -> list[str] | None:
    r"""Return what stands in each outermost `\boxed{...}` in order, stripped; None when one is left open or empty."""
    found, _ = split_boxes(text)
    return found


def split_boxes(text: str) -> tuple[list[str] | None, str]:
    """Return `boxes(text)` and the text without the boxes."""
    found: list[str] = []
    outside: list[str] = []
    depth = start = end = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token[-1] == "{" and token != "\\{":
            if depth:
                depth += 1
            elif _OPENS.match(token):
                depth, start = 1, match.end()
                outside.append(text[end : match.start()])
        elif token == "}" and depth:
            depth -= 1
            if depth == 0:
                found.append(text[start : match.start()].strip())
                end = match.end()
    return None if depth or "" in found[-1:] else found, "".join([*outside, text[end:]])


def boxed_answer(text: str) -> str | None:
    """Return what is boxed, several different boxes as a list with commas; None without a complete box.

    A list is right only where the gold answer is the same list: boxing every guess earns nothing.
    """
    found = boxes(text)
    if not found:
        return None
    different = list({re.sub(r"\s+", "", box): box for box in found if box}.values())
    return ", ".join(different) if len(different) <= _MAX_BOXES else None


def stated_answer(text: str) -> str | None:
    """Return what follows the last `####` line or the last "the answer is", up to the end of its sentence, or None.

    None, too, where a text states several different answers, unless it takes back all but the last, or offers another
    behind the last.
    """
    hashes = _HASHES.findall(text)
    if hashes:
        return hashes[-1] if len(set(hashes)) == 1 else None
    found: dict[str, tuple[int, int, str]] = {}  # by the answer without spaces: first and last place, answer
    phrases = list(itertools.islice(_PHRASE.finditer(text), _MAX_PHRASES + 1))
    for match in phrases:
        tail = text[match.end() : match.end() + _MAX_TAIL]
        if _PHRASE.match(tail):  # "Final answer: the answer is"
            continue
        sentence = _SENTENCE_END.search(tail)
        stop = sentence.start() if sentence else len(tail)
        if answer := tail[:stop].strip(" \t:*"):
            key = re.sub(r"[\s$*]+", "", answer)
            found[key] = found.pop(key, (match.start(),))[0], match.end() + stop, answer
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
    if _CONCLUDES.match(last) and (match := _CONCLUDED_FORMULA.fullmatch(last)):
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


def extract_answer(turn: str, extraction: Extraction = "auto") -> str | None:
    r"""Return the final answer of an assistant's turn, or None. What is inside the thinking never counts.

    Args:
        turn: the assistant's whole turn (`Completion.turn`).
        extraction: "answer_tag": the last `<answer>` block. "boxed": what is boxed (`boxed_answer`). "text":
            everything outside the thinking. "auto": a box in the last answer block, else that block, else what is
            boxed, else what follows "the answer is", else what the last sentence comes to (`concluded_answer`), else
            the text; text with an unfinished answer block or box is no
            answer, and neither are several different answer blocks.
    """
    outside = after_thinking(turn)
    if outside is None:
        return None
    block = last_answer_block(outside)
    if extraction in ("auto", "answer_tag") and block is not None and _has_other_block(outside, block):
        return None
    if extraction == "answer_tag":
        return block
    if extraction == "boxed":
        return boxed_answer(outside)
    if extraction == "text":
        return outside.strip() or None
    if block is not None:
        return _inner(block, is_answer=True)
    if "<answer>" in outside:
        return None
    return _inner(outside.strip(), is_answer=False)


def _inner(text: str, *, is_answer: bool) -> str | None:
    if _OPENS.search(text):
        return boxed_answer(text)
    return stated_answer(text) or concluded_answer(text, is_answer=is_answer) or text.strip() or None


def _has_other_block(text: str, last: str) -> bool:
    blocks = {
        re.sub(r"\s+", "", block) for block in re.findall(r"<answer>((?:(?!<answer>).)*?)</answer>", text, re.DOTALL)
    }
    if len(blocks - {re.sub(r"\s+", "", last)}) > 0:
        return True
    behind = boxes(text.rpartition("</answer>")[2]) or []  # a box behind the block must say the same
    return any(re.sub(r"\s+", "", box) not in re.sub(r"\s+", "", last) for box in behind)
