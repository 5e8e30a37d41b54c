"""The actions of GUI agents as they are written in answers: which have a target, and where."""

import re

_CLICKS = frozenset(
    (
        "click", "leftclick", "tap", "doubleclick", "leftdouble", "rightclick", "rightsingle",
        "middleclick", "tripleclick", "longpress", "hover", "moveto", "mousemove", "clickon",
        "leftsingle", "doubletap", "touch", "lefttripleclick",
    )
)  # fmt: skip
_OTHERS = frozenset(
    (
        "scroll", "type", "write", "typewrite", "drag", "dragto", "dragrel", "swipe", "hotkey",
        "press", "finished", "wait", "select", "openapp", "open", "terminate", "answer", "key",
        "keydown", "keyup", "leftclickdrag", "pressback", "presshome", "pressenter", "calluser",
        "input", "inputtext", "done", "fail", "sleep", "hscroll", "vscroll", "screenshot", "back",
        "home", "enter", "stop", "impossible",
    )
)  # fmt: skip
_CALL = re.compile(
    r"(?:\b[A-Za-z_]+\.)?\b([A-Za-z_]+)\(((?:[^()'\"]|'[^']*'|\"[^\"]*\"|\([^()]*\))*)\)"
)
_N = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_NUMBER = re.compile(_N)
_XY = re.compile(rf"\bx\s*=\s*({_N})\s*,\s*y\s*=\s*({_N})")
_QUOTED = re.compile(
    r"\b(start_box|point|box|coordinate|coords?|position)\s*=\s*(?:'([^']*)'|\"([^\"]*)\"|\(([^()]*)\)|\[([^\[\]]*)\])"
)
_POSITIONAL = re.compile(rf"\s*\(?\s*({_N})\s*,\s*({_N})\s*\)?\s*(?:,\s*[a-z_]+\s*=.*)?", re.DOTALL)
_TOKENS = re.compile(r"<[^>]*>")


def is_click(name: str) -> bool:
    """Whether an action has a place that it is done at, and only that."""
    return _plain(name) in _CLICKS


def has_no_place(name: str) -> bool:
    """Whether an action is known to be done at no one place."""
    return _plain(name) in _OTHERS


def target_of(text: str) -> tuple[bool, list[float] | None]:
    """Whether a text ends in an action, and the point or box that the action is done at.

    Understood are calls: ``click(start_box='(x,y)')``, ``click(point='<point>x y</point>')``,
    ``pyautogui.click(x=0.5, y=0.2)``, ``tap(100, 200)``.
    """
    calls = [
        (name, arguments) for name, arguments in _CALL.findall(text)
        if _plain(name) in _CLICKS or _plain(name) in _OTHERS
    ]  # fmt: skip
    if not calls:
        return False, None
    for name, arguments in reversed(calls):
        if not is_click(name):
            return True, None
        if arguments.strip():  # click() is done where the call before it has moved to
            return True, _place(arguments)
    return True, None


def _place(arguments: str) -> list[float] | None:
    if found := _XY.search(arguments):
        return [_number(part) for part in found.groups()]
    if found := _QUOTED.search(arguments):
        inside = next(part for part in found.groups()[1:] if part is not None)
        numbers = [_number(part) for part in _NUMBER.findall(_TOKENS.sub(" ", inside))]
        return numbers if len(numbers) in (2, 4) else None
    if found := _POSITIONAL.fullmatch(arguments):
        return [_number(part) for part in found.groups()]
    return None


def _number(text: str) -> float:
    return int(text) if text.lstrip("+-").isdigit() and len(text) <= 15 else float(text)


def _plain(name: str) -> str:
    return name.replace("_", "").replace(" ", "").replace("-", "").lower()
