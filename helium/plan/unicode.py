"""Text that can be sent and stored: a Python string may hold what no UTF-8 can say."""

from __future__ import annotations

NO_UNICODE = "which cannot be sent; decode it with errors='replace'"
"""What to do about it, for messages."""


def is_unicode(text: str) -> bool:
    """Whether a string can be encoded; one with half a surrogate pair cannot.

    Example:
        >>> is_unicode(chr(0xEF)), is_unicode(chr(0xD800))
        (True, False)
    """
    if text.isascii():  # kept with the string, so most texts cost nothing
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
