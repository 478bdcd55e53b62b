"""Checks the form of a webhook's URL. Where its connections may go is judged by `common.addresses`. Pure.

An operator of the API who may add webhooks must not reach the server's own machine through them, its neighbors, or the metadata
service of a cloud.
"""

from urllib.parse import SplitResult, urlsplit

from server.base.errors import RegistryError

MAX_URL_CHARS = 1024


def checked_url(url: str) -> SplitResult:
    """A URL that webhooks may have.

    Raises:
        RegistryError: it has another form; the text says what is wrong.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RegistryError(f"{url[:100]!r} is not a URL") from None
    if len(url) > MAX_URL_CHARS or not url.isascii() or any(letter <= " " or letter == "\x7f" for letter in url):
        raise RegistryError(f"a webhook's URL has at most {MAX_URL_CHARS} characters, all of them ASCII and none a blank")
    if parts.scheme != "https" or not parts.hostname:
        raise RegistryError("a webhook's URL begins with https:// and a host: https://shop.example/hooks/licenses")
    if parts.username is not None or parts.password is not None:
        raise RegistryError("a webhook's URL has no user or password: the signature shows who sends")
    if parts.fragment or port == 0:
        raise RegistryError("a webhook's URL has no fragment ('#') and no port 0")
    return parts
