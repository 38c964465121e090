"""What surrounds an answer and is no part of it: HTML, Markdown, check marks, doubled backslashes, other brackets."""

from __future__ import annotations

import html
import re

_ENTITY = re.compile(
    r"&(?:nbsp|pi|theta|lt|gt|le|ge|ne|minus|times|divide|deg|middot|radic|infin|plusmn|frac1[24]|frac34|sup[23]|"
    r"#[0-9]{2,5});"
)
_RAISED = re.compile(r"<(sup|sub)>([^<>]{1,40})</\1>", re.IGNORECASE)
_TAG = re.compile(r"</?(?:b|i|u|em|strong|code|span|p|mark)>|<br ?/?>", re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<![\w)}*\\])(\*\*|\*|__|`)(?=[^\s*_`])([^*`\n]*?[^\s*_`])\1(?![\w({*])")
_MARKS_BEHIND = re.compile("[\u2705\u2713\u2714\u2611\u2b50\u2728\ufe0f\U0001f300-\U0001faff\\s]+$")
_COMMAND = re.compile(r"(?<!\\)\\[A-Za-z]")
_DOUBLED = re.compile(r"\\\\[A-Za-z]")
_BRACKETS = str.maketrans({"\u3010": "(", "\u3011": ")", "\u3014": "(", "\u3015": ")", "\u300c": "(", "\u300d": ")"})
_DEGREE_SIGNS = str.maketrans({"\u1d52": "\u00b0", "\u02da": "\u00b0", "\u00ba": "\u00b0", "\u2236": ":"})


def without_markup(text: str) -> str:
    r"""Return an answer without HTML, emphasis, check marks behind it, and backslashes doubled as JSON doubles them.

    Doubled are `\\frac` and `\\\\` where no command stands behind a single backslash: `\\` alone may end a row.
    """
    if _DOUBLED.search(text) and not _COMMAND.search(text):
        text = text.replace("\\\\", "\\")
    text = _RAISED.sub(lambda m: f"{'^' if m[1].lower() == 'sup' else '_'}{{{m[2]}}}", text)
    text = _ENTITY.sub(lambda m: html.unescape(m[0]), _TAG.sub("", text))
    text = _MARKS_BEHIND.sub("", text)
    return _EMPHASIS.sub(r"\2", text).translate(_BRACKETS).translate(_DEGREE_SIGNS).replace("\u00a0", " ")
