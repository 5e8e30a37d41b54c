"""Where the image that a record names lies, and its bytes."""

import errno
import os
import posixpath
import re
import stat
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.inline_image import InlineImage

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_DRIVE = re.compile(r"[A-Za-z]:/")
_MAX_NAME_BYTES = 1024  # S3's limit; file systems give up somewhere above it
_NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.ELOOP)


def image_name(value: object) -> str | None:
    """What a record's image, or the first of several, is called; None where it is no image."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, InlineImage):
        return value.name
    return value if isinstance(value, str) else None


def is_relative(value: object) -> bool:
    """Whether a record's image is a path that starts from a folder which the record does not say.

    Not an absolute path, not an image that the record holds, and not what is no image at all.
    """
    name = image_name(value)
    inside = isinstance(value[0] if isinstance(value, list) and value else value, InlineImage)
    return name is not None and not inside and not name.startswith(("/", "file:"))


def folder_prefixes(folder: str) -> tuple[str, ...]:
    """What an absolute path inside a folder begins with: as given, and with links followed."""
    found = (os.path.abspath(folder), os.path.realpath(folder))  # noqa: PTH100 - links as they are
    return tuple(dict.fromkeys(path.rstrip("/") + "/" for path in found))


def check_image_path(path: str, prefixes: Sequence[str] = ()) -> str:
    """A record's image path, normalised: relative, and inside the folder it starts from.

    ``file://`` URLs and backslashes are understood.

    Args:
        path: As the record has it.
        prefixes: Of that folder, from :func:`folder_prefixes`: an absolute path must begin with
            one of them.

    Raises:
        RecordError: causes ``image_path_empty``, ``image_path_url``, ``image_path_absolute``,
            ``image_path_outside``, ``image_not_file`` (the folder itself), and
            ``image_not_found`` for names that neither a file nor an object can have.
    """
    if not path.strip():
        raise RecordError("image_path_empty", f"{path!r}")
    plain = path
    if plain.startswith("file:"):
        plain = unquote(urlsplit(plain).path)
    elif _URL.match(plain):
        raise RecordError("image_path_url", f"{path[:200]!r}: nothing is fetched, give a file")
    if "\\" in plain:
        plain = plain.replace("\\", "/")
    if plain.startswith("/"):
        plain = posixpath.normpath(plain)
        prefix = next((prefix for prefix in prefixes if plain.startswith(prefix)), None)
        if prefix is not None:
            plain = plain[len(prefix) :]
    if plain.startswith(("/", "~")) or _DRIVE.match(plain):
        raise RecordError("image_path_absolute", f"{path[:200]!r} is not inside images-root")
    inside = posixpath.normpath(plain)
    if inside == ".." or inside.startswith("../"):
        raise RecordError("image_path_outside", f"{path[:200]!r} leaves images-root")
    if inside == ".":
        raise RecordError("image_not_file", f"{path[:200]!r} is images-root itself")
    if "\0" in inside or len(inside.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
        raise RecordError("image_not_found", f"{path[:200]!r} is no name that a file can have")
    return inside


def other_spellings(inside: str, path: str) -> Iterator[str]:
    """What a file may be called that is not found.

    Accents in either Unicode form, backslashes, and ``%20`` for a space.
    """
    if not inside.isascii():
        for form in ("NFC", "NFD"):
            other = unicodedata.normalize(form, inside)
            if other != inside:
                yield other
    if "\\" in path and not path.startswith(("/", "file:")) and ".." not in path:
        yield path
    if "%" in inside:
        with suppress(RecordError):  # %2E%2E leads no further than .. does
            decoded = check_image_path(unquote(inside))
            if decoded != inside and decoded.isprintable():
                yield decoded


def read_image(folder: str, prefixes: Sequence[str], path: str) -> bytes:
    """The bytes of the file in a local folder that a record's path names.

    Raises:
        RecordError: as :func:`check_image_path` and :func:`read_image_file`.
    """
    inside = check_image_path(path, prefixes)
    try:
        return read_image_file(f"{folder}/{inside}", path)
    except RecordError as error:
        if error.cause == "image_not_found":
            for other in other_spellings(inside, path):
                if Path(folder, other).is_file():
                    return read_image_file(f"{folder}/{other}", path)
        raise


def read_image_file(file: str, path: str) -> bytes:
    """The bytes of a local file.

    Args:
        file: Its whole path.
        path: What the record calls it, for messages.

    Raises:
        RecordError: causes ``image_not_found``, ``image_not_file``, ``image_not_read``.
    """
    try:
        # Without O_NONBLOCK, a named pipe would wait for a writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise RecordError("image_not_file", f"{path[:200]!r} is a folder or a device")
            data = os.read(descriptor, status.st_size)
            while len(data) < status.st_size and (more := os.read(descriptor, status.st_size)):
                data += more  # a signal or the kernel's 2 GiB limit cut it short
            return data
        finally:
            os.close(descriptor)
    except IsADirectoryError as error:
        raise RecordError("image_not_file", f"{path[:200]!r} is a folder") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RecordError("image_not_found", f"{path[:200]!r} is not in images-root") from error
    except ValueError as error:  # letters that no file name can have
        raise RecordError("image_not_found", f"{path[:200]!r}: {error}") from error
    except OSError as error:
        cause = "image_not_found" if error.errno in _NO_SUCH_NAME else "image_not_read"
        raise RecordError(cause, f"{path[:200]!r}: {error.strerror}") from error
