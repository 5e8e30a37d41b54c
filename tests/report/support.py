"""Lines of ``answers.jsonl`` for tests of the page."""


def row(**changes):
    answer = {
        "key": "k",
        "prompt": "Click",
        "text": "(300, 150)",
        "solution": [200, 120, 400, 240],
        "scales": [1200, 600],
        "image": "i",
        "failure": None,
        "point": [300.0, 150.0],
        "box": None,
        "is_hit": True,
        "iou": 0.0,
        "distance": 0.022,
        "is_outside": False,
        "size": "large",
        "fields": {"element.role": "link"},
    }
    return answer | changes


UNREADABLE = {"text": "", "point": None, "failure": "no_numbers", "is_hit": False, "distance": None}
