"""Requests to the Hub: retries while it is busy, and plain words when it refuses.

huggingface_hub retries uploads to the storage of large files and listings of files itself; everything else (who am I,
create, commit, tag) it asks once. `ask` retries those; `tries=1` is for what is retried already.
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
LONGEST_WAIT = 300.0  # the Hub counts requests over five minutes; a longer wait that it asks for is an error
ADVICE = {  # by HTTP status: what happened, and what to do
    401: ("the Hub does not accept the token", "run `hf auth login`, or put a valid one into HF_TOKEN"),
    403: ("the token may not do this", "use one with the right to write there"),
    404: ("not found", "check the name, and whether the token may see it"),
    429: ("too many requests", "run it again in some minutes"),
}


class HubError(ValueError):
    """What could not be done on the Hub and why; `status` is the HTTP status, `None` without an answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def ask(what: str, call: Callable[[], Answer], tries: int = len(WAITS) + 1) -> Answer:
    """What `call` returns, after at most `tries` attempts; raises `HubError` with the last failure as its cause.

    Args:
        what: completes "could not ...", for the message.
        call: asks the Hub. It must be safe to repeat, since an answer may be lost after the work was done.
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


def status_of(error: BaseException) -> int | None:
    return getattr(getattr(root_cause(error), "response", None), "status_code", None)


def root_cause(error: BaseException) -> BaseException:
    """The HTTP error behind an error, or the first of its causes."""
    while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
        error = error.__cause__
    return error


def reason(error: Exception) -> str:
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token; run `hf auth login`, or put one that may write into the variable HF_TOKEN"
    if isinstance(error, OfflineModeIsEnabled):
        return "the variable HF_HUB_OFFLINE forbids asking the Hub; unset it"
    status, cause = status_of(error), root_cause(error)
    if status is None:
        causes = dict.fromkeys(str(entry).strip() for entry in (error, error.__cause__ or error))
        return f"no answer ({' '.join(causes)}); check the connection and run it again"
    message = " ".join((getattr(cause, "server_message", None) or str(cause)).split())
    if status >= 500:
        return f"the Hub is in trouble (HTTP {status}, {message}); run it again later"
    prefix, advice = ADVICE.get(status, (f"HTTP {status}", None))
    return f"{prefix} ({message}); {advice}" if advice else f"{prefix}, {message}"
