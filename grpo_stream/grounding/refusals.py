"""Texts without a place that say so: what was asked for is not there.

Read as a refusal, upper case or lower, of a text that holds no list of numbers:

* the whole text, between quotes, fences and full stops, is ``null``, ``None``, ``N/A``,
  ``refusal``, ``[]`` or ``[[]]``;
* a known key holds nothing: ``{"bbox_2d": []}``, ``{"point_2d": null}``;
* an action that ends the task: ``terminate`` as the name of a call or action, as Qwen's
  ``computer_use`` and ``mobile_use`` have it and OSWorld-G's judge counts it, whatever its status;
* a sentence that says it: "not found", "no such element", "does not exist", "is not visible", ...,
  and the same in Chinese.

``[-1, -1]`` is one, too, but has numbers: see :attr:`~.answers.Answer.is_refusal`.
"""

import re

_NOUN = (
    r"(?:elements?|objects?|targets?|items?|buttons?|icons?|match(?:es)?|places?|regions?|thing"
    r"|bounding box(?:es)?)"
)
# Repetitions are of one class each and end at a word, so the search never goes far back.
_SAYS_SO = re.compile(
    r"""(?xi)
    (?<![a-z])not[ _-]found\b
    | \b(?:could|can|did|do)(?:\ not|n['\u2019]t|not)\ (?:find|locate)\b
    | \bno[ _](?:such|matching|corresponding|suitable)[ _]\w
    | \bno[ _]"""
    + _NOUN.replace(" ", r"\ ")
    + r"""(?:[ _](?:is[ _]|was[ _])?found\b|[ ](?:match|fit)(?:es)?\b|\s*[."']*\s*$)
    | \b(?:do|does)(?:\ not|n['\u2019]t)\ (?:exist|appear)\b
    | \b(?:is|are)(?:\ not|n['\u2019]t)\ (?:there|present|visible|shown|available|on|in)\b
    | \bnon-?existent\b
    | \u672a\u627e\u5230 | \u627e\u4e0d\u5230 | \u6ca1\u6709\u627e\u5230 | \u4e0d\u5b58\u5728
    """
)
_NOTHING = re.compile(r"(?i)null|none|n/a|refus(?:al|ed)|\[\s*(?:\[\s*\]\s*)?\]")
_EMPTY_KEY = re.compile(
    r"(?i)\b(?:bbox_2d|point_2d|bbox|point|coordinates?)\\?[\"']?\s*[:=]\s*\\?[\"']?"
    r"(?:null|none|\[\s*\])"
)
_ENDS_TASK = re.compile(
    r"(?i)\bterminate\s*\(|\b(?:action|action_type|name|type)\\?[\"']?\s*[:=]\s*\\?[\"']?"
    r"terminate\b"
)
_DRESS = " \t\r\n\"'`.*"


def is_worded_refusal(text: str) -> bool:
    """Whether a text that holds no place says that there is none; see the module.

    Args:
        text: What is said after the thoughts, without tags and control words.
    """
    bare = text.strip(_DRESS)
    if bare[:4].lower() == "json":
        bare = bare[4:].strip(_DRESS)
    return any(
        (
            _NOTHING.fullmatch(bare),
            _EMPTY_KEY.search(text),
            _ENDS_TASK.search(text),
            _SAYS_SO.search(text),
        )
    )
