"""One look at a server's metrics."""

from __future__ import annotations

import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from adapterd.calls import TLS_VARIABLES

PREFIX = "adapterd_"
TIMEOUT_S = 3.0
DENIED = (401, 403)
ANOTHER = "name the port of an adapterd's metrics (api.http_port) with --http HOST:PORT"
Labels = Mapping[str, str]


class NoAnswer(Exception):
    """There are no metrics to be had: why, and what to do."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(f"{why}; {remedy}")
        self.why = why
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Scrape:
    """
    at        seconds on the monotonic clock
    samples   by name, each with its labels
    """

    at: float
    samples: Mapping[str, list[tuple[Labels, float]]]

    def value(self, name: str, **labels: str) -> float:
        """The sum of the samples that have these labels, whatever others they have."""
        return sum(value for own, value in self.having(name, labels))

    def having(self, name: str, labels: Labels) -> Iterator[tuple[Labels, float]]:
        for own, value in self.samples.get(PREFIX + name, ()):
            if labels.items() <= own.items():
                yield own, value

    def values_of(self, name: str, label: str) -> list[str]:
        """All values of a label, in the order of the exposition."""
        return list(dict.fromkeys(own[label] for own, _ in self.having(name, {}) if label in own))


def url_of(place: str) -> str:
    """Of "host:port", with TLS where a CA is named; a whole URL stays as it is."""
    scheme = "https" if os.environ.get(TLS_VARIABLES[0]) else "http"
    return place if "://" in place else f"{scheme}://{place}/metrics"


def scrape(place: str, token: str | None = None, *, clock: Callable[[], float] = time.monotonic) -> Scrape:
    """Raises NoAnswer."""
    return parsed(fetched(place, token), clock(), place)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A token goes to whom it was meant for."""

    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    """Trusts the CA of the variable ADAPTERD_CA, as the client does, and shows a certificate if there is one."""
    ca, certificate, key = (os.environ.get(variable) for variable in TLS_VARIABLES)
    context = ssl.create_default_context(cafile=ca or None)
    if certificate:
        context.load_cert_chain(certificate, key or None)
    return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirect)


def fetched(place: str, token: str | None) -> str:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(url_of(place), headers=headers)
        with _opener().open(request, timeout=TIMEOUT_S) as answer:
            return str(answer.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        with error:
            raise _refused(place, error.code) from error
    except HTTPException as error:
        raise NoAnswer(f"what answers at {place} is no HTTP", ANOTHER) from error
    except (OSError, ValueError) as error:  # of the connection, an URLError too; of a place that is no address
        remedy = f"start a server with adapterd serve, or {ANOTHER}"
        raise NoAnswer(f"no answer from {place} ({_reason(error)})", remedy) from error


def parsed(text: str, at: float, place: str) -> Scrape:
    samples: dict[str, list[tuple[Labels, float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    except ValueError as error:
        raise NoAnswer(f"what {place} answers is no metrics", ANOTHER) from error
    if not any(name.startswith(PREFIX) for name in samples):
        raise NoAnswer(f"the metrics at {place} are not adapterd's", ANOTHER)
    return Scrape(at, samples)


def _refused(place: str, status: int) -> NoAnswer:
    if status in DENIED:
        remedy = "set ADAPTERD_TOKEN (or --token) to a token that may read the metrics"
        return NoAnswer(f"{place} wants credentials (HTTP {status})", remedy)
    return NoAnswer(f"{place} answers HTTP {status}", ANOTHER)


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return str(getattr(reason, "strerror", None) or reason)
