"""What docstrings of overrides say, against the installed trl and transformers."""

import importlib.metadata
import re

_PROVENANCE = (
    r"(Extends|Replaces) ``(\w+)\.(\w+)`` "
    r"\((trl|transformers) ([\d.]+)(, trl ([\d.]+))?\)"
)


def overrides_in(cls, upstream):
    """The methods of ``cls`` itself that a class of trl or transformers has."""
    return [
        method
        for name, method in vars(cls).items()
        if callable(method) and name != "__init__" and hasattr(upstream, name)
    ]


def check_provenance(method, upstream):
    """The docstring names the class that has the method, with its package's version.

    Returns:
        Whether it names trl's version beside transformers'.
    """
    found = re.match(_PROVENANCE, method.__doc__)
    assert found, method.__doc__
    _, owner, name, package, version, _, second = found.groups()
    first = next(c for c in upstream.__mro__ if method.__name__ in vars(c))
    assert (owner, name) == (first.__name__, method.__name__)
    assert first.__module__.startswith(package)
    assert importlib.metadata.version(package).startswith(f"{version}.")
    assert second is None or importlib.metadata.version("trl").startswith(f"{second}.")
    return second is not None
