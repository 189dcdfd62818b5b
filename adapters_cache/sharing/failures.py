"""What a remote does wrong, said in a sentence that holds no credentials."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import AdapterdError, Unavailable

# user:password@ of an address, and what tokens and signatures look like in one.
_SECRETS = re.compile(
    r"(?<=//)[^/\s@]+@|(?i:bearer|basic)\s+\S+|(?i:(?:token|key|signature|secret|password|authorization)[=:]\s*)[^&\s]+|hf_\w{8,}"
)


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Turn whatever a remote's library raises into Unavailable, with its reason."""
    try:
        yield
    except AdapterdError:
        raise
    except Exception as error:  # each library has its own, without a common base
        raise Unavailable(f"{redacted(what)} failed: {redacted(str(error)) or type(error).__name__}") from None


def redacted(text: str) -> str:
    """Without user names, passwords and tokens, on one line."""
    return _SECRETS.sub("***", " ".join(text.split()))[:500]
