"""Where the image that a record names lies, and its bytes."""

import errno
import os
import posixpath
import re
import stat

from grpo_stream.errors import RecordError
from grpo_stream.records.formats.inline_image import InlineImage

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_MAX_NAME_BYTES = 1024  # S3's limit; file systems give up somewhere above it
_NO_SUCH_NAME = (errno.ENAMETOOLONG, errno.ELOOP)


def image_name(value: object) -> str | None:
    """What a record's image, or the first of several, is called; None where it is no image."""
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, InlineImage):
        return value.name
    return value if isinstance(value, str) else None


def check_image_path(path: str) -> str:
    """A record's image path, normalised: relative, and inside the folder it starts from.

    Raises:
        RecordError: causes ``image_path_empty``, ``image_path_url``, ``image_path_absolute``,
            ``image_path_outside``, ``image_not_file`` (the folder itself), and
            ``image_not_found`` for names that neither a file nor an object can have.
    """
    if not path.strip():
        raise RecordError("image_path_empty", f"{path!r}")
    if _URL.match(path):
        raise RecordError("image_path_url", f"{path[:200]!r}: nothing is fetched, give a file")
    if path.startswith(("/", "\\", "~")):
        raise RecordError("image_path_absolute", f"{path[:200]!r} is not relative to images-root")
    inside = posixpath.normpath(path)
    if inside == ".." or inside.startswith("../"):
        raise RecordError("image_path_outside", f"{path[:200]!r} leaves images-root")
    if inside == ".":
        raise RecordError("image_not_file", f"{path[:200]!r} is images-root itself")
    if "\0" in inside or len(inside.encode("utf-8", "surrogatepass")) > _MAX_NAME_BYTES:
        raise RecordError("image_not_found", f"{path[:200]!r} is no name that a file can have")
    return inside


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
