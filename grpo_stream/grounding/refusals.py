"""Texts without a place that say so: what was asked for is not there.

Read as a refusal, upper case or lower, of a text that holds no list of numbers:

* the whole text, between quotes, fences and full stops, is ``null``, ``None``, ``N/A``, ``not
  applicable``, ``refusal``, ``[]``, ``[[]]``, ``[null, null]``, or OSWorld's action ``FAIL``;
* a known key holds nothing: ``{"bbox_2d": []}``, ``{"point_2d": null}``; or a field says it, as
  ``{"found": false}``, ``{"result": "negative"}``;
* an action that ends the task: ``terminate`` as the name of a call or action, as Qwen's
  ``computer_use`` and ``mobile_use`` have it and OSWorld-G's judge counts it, whatever its status;
  UI-TARS' ``call_user()``; the status ``infeasible``;
* a sentence that says it: "not found", "no such element", "does not exist", "there is no ...",
  "unable to locate ...", ..., and the same in Chinese.

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
    (?<![a-z])not[ _-](?:found|present|visible|exist|detected|feasible)\b
    | \b(?:could|can|did|do)(?:\ not|n['\u2019]t|not)\ (?:find|locate)\b
    | \b(?:unable|fail(?:ed|s)?)\ to\ (?:find|locate)\b
    | \bno[ _](?:such|matching|corresponding|suitable)[ _]\w
    | \bthere\ (?:is|are|was|were)(?:n['\u2019]t|\ not)\ (?:a|an|any)\b
    | \bthere\ (?:is|are|was|were)\ no\ (?!doubt|need|problem|question|way\b)
    | \bno[ _]"""
    + _NOUN.replace(" ", r"\ ")
    + r"""(?:[ _](?:is[ _]|was[ _])?found\b|[ ](?:match|fit)(?:es)?\b|\s*[."']*\s*$)
    | \b(?:do|does)(?:\ not|n['\u2019]t)\ (?:exist|appear)\b
    | \b(?:is|are)(?:\ not|n['\u2019]t)\ (?:there|present|visible|shown|available|on|in)\b
    | \bis\ missing\ from\b
    | \bnon-?existent\b
    | \b(?:in|un)feasible\b
    | 未能?(?:找到|发现|检测到|出现|看到|显示|包含)
    | [找看]不到 | 不存在 | 不可见 | 无法(?:找到|定位|识别)
    | 没有?(?:找到|发现|看到|出现|检测到|对应|匹配|符合|[该此这])
    | 不在(?:图|屏幕|画面|截图|界面|页面|当前|[该此这])
    | (?:图|图像|图片|屏幕|画面|截图|界面|页面)[中上里内]?并?(?:没有|[无未不]包含|无)
    """
)
_NOTHING = re.compile(
    r"(?i)null|none|n/a|not[ ]applicable|refus(?:al|ed)|fail|terminate|无|没有"
    r"|\[\s*(?:\[\s*\]\s*)?\]|\[\s*(?:null|none)(?:,\s*(?:null|none)){0,3}\s*\]"
)
_EMPTY_KEY = re.compile(
    r"(?i)\b(?:bbox_2d|point_2d|bbox(?:es)?|boxes|points?|coordinates?)\\?[\"']?\s*[:=]\s*"
    r"\\?[\"']?(?:null|none|\[\s*(?:null|none|\]))"
    r"|\\?[\"'](?:found|exists?|present|visible)\\?[\"']\s*:\s*\\?[\"']?(?:false|no)\b"
    r"|\\?[\"']result\\?[\"']\s*:\s*\\?[\"']negative\b"
)
_ENDS_TASK = re.compile(
    r"(?i)\b(?:terminate|call_user)\s*\(|\b(?:action|action_type|name|type)\\?[\"']?\s*[:=]\s*"
    r"\\?[\"']?(?:terminate|call_user)\b"
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
