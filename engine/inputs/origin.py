"""Whether a page of another origin made a browser send a request.

Such a page reads no answer, but can let the browser send a plain GET or POST to this machine: what
it starts would cost work all the same (cross-site request forgery).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping


def is_foreign(headers: Mapping[str, str], allowed: Collection[str] = ()) -> bool:
    """Whether a page sent it that is neither the server's own nor of an allowed origin ("*": all).

    headers: names in lower case. Programs send neither Origin nor Sec-Fetch-Site; following a link
    is no request of the page that holds it.
    """
    if "*" in allowed:
        return False
    origin = headers.get("origin")
    if origin is not None:
        _, separator, host = origin.partition("://")
        own = bool(separator) and host.lower() == headers.get("host", "").lower()
        return origin not in allowed and not own
    followed = headers.get("sec-fetch-mode") == "navigate" and (
        headers.get("sec-fetch-dest", "document") == "document"
    )
    return headers.get("sec-fetch-site") == "cross-site" and not followed
