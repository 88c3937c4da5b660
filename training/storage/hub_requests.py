"""Asking the Hub: patience with a busy server, plain words about a refusing one.

Decides: which failures are worth another attempt, how long to wait and when to stop, and what a person is told.
Refuses to know: what is asked.

huggingface_hub itself repeats what it sends to the storage of large files, and listings of files; it asks only once
for everything else (who am I, create, commit, tag). `ask` is for that; `tries=1` is for what is repeated already.
"""

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled


Answer = TypeVar("Answer")
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of the HTTP library, which differs between versions
NO_ANSWER = (HTTP_ERROR, ConnectionError, TimeoutError)
FAILURES = (*NO_ANSWER, LocalTokenNotFoundError, RuntimeError)  # the last one when storing a large file fails
BUSY = (408, 429, 500, 502, 503, 504)
CONFLICT = (409, 412)
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before the second, third, ... attempt
LONGEST_WAIT = 300.0  # the Hub counts requests over five minutes; one that asks for longer is not waited for


class HubError(ValueError):
    """What could not be done on the Hub and why; `status` is the HTTP status, `None` without an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def ask(what: str, call: Callable[[], Answer], tries: int = len(WAITS) + 1) -> Answer:
    """What `call` returns, after at most `tries` attempts.

    Args:
        what: completes "could not ...", for the message.
        call: asks the Hub. Carrying it out twice must do no harm: an answer may be lost after the work was done.

    Raises:
        HubError: with the last failure as its cause.
    """
    for wait in (*WAITS[: tries - 1], None):
        try:
            return call()
        except FAILURES as error:
            if wait is None or (pause := seconds_to_wait(error, wait)) is None:
                raise HubError(f"could not {what}: {reason(error)}", status_of(error)) from error
            print(f"could not {what} yet: {reason(error)}; trying again in {pause:g} s", file=sys.stderr)
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def seconds_to_wait(error: Exception, wait: float) -> float | None:
    """How long before the next attempt, at least `wait`; `None` if there should be none."""
    if isinstance(error, (LocalTokenNotFoundError, OfflineModeIsEnabled)):
        return None
    if isinstance(error, HfHubHTTPError):
        asked = error.response.headers.get("Retry-After", "")
        wait = max(wait, float(asked)) if asked.isdigit() else wait
        return wait if error.response.status_code in BUSY and wait <= LONGEST_WAIT else None
    return wait if isinstance(error, NO_ANSWER) else None


def status_of(error: BaseException | None) -> int | None:
    """The HTTP status of an error or of its cause."""
    while error is not None:
        if isinstance(error, HfHubHTTPError):
            return error.response.status_code
        error = error.__cause__
    return None


def reason(error: Exception) -> str:
    """What happened and what to do about it."""
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token; run `hf auth login`, or put one that may write into the variable HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "the variable HF_HUB_OFFLINE forbids asking the Hub; unset it"
    status = status_of(error)
    if status is None:
        causes = [str(error), *([str(error.__cause__)] if error.__cause__ else [])]
        return f"no answer ({' '.join(cause.strip() for cause in causes)}); check the connection and run it again"
    said = server_words(error)
    if status == 401:
        return f"the Hub does not accept the token ({said}); run `hf auth login`, or put a valid one into HF_TOKEN"
    if status == 403:
        return f"the token may not do this ({said}); use one with the right to write there"
    if status == 404:
        return f"not found ({said}); check the name, and whether the token may see it"
    if status == 429:
        return f"too many requests ({said}); run it again in some minutes"
    if status >= 500:
        return f"the Hub is in trouble (HTTP {status}, {said}); run it again later"
    return f"HTTP {status}, {said}"


def server_words(error: BaseException) -> str:
    """The server's own message, on one line."""
    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    said = getattr(error, "server_message", None) or str(error)
    return " ".join(said.split())
