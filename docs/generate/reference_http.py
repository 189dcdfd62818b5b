"""docs/reference/http.md, from the schema that the server gives of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from reference_text import page, table

from server.config import ApiConfig
from server.http.app import Parts, make_app
from server.http.failures import STATUSES

NOT_SENT = ("HTTPValidationError", "ValidationError")  # of FastAPI's own; here errors look otherwise
PATHS = (
    "`{name}` is an adapter, a composition (blanks as `%20`) or `base`; `{version}` is a digest, or its first 8 digits"
    " or more."
)
BODIES = (
    "Those of `/v2` are the [Open Inference Protocol's](../protocols.md#open-inference-protocol); the others have"
    " fields of these types."
)
ERRORS = """\
Under `/v2` the body is `{"error": MESSAGE, "reason": REASON}`; under `/v1` it is as OpenAI has it,
`{"error": {"message": MESSAGE, "type": REASON, "code": STATUS}}`. [operations.md](../operations.md#errors) lists the
reasons. `Retry-After` has the seconds after which to come back, where that is known.
"""


def http_page() -> str:
    schema = make_app(cast(Parts, _Nothing()), ApiConfig()).openapi()
    lines = page(
        "HTTP",
        "the server's OpenAPI schema",
        "Every path of the HTTP port. [protocols.md](../protocols.md) says which to use, with examples. A running"
        " server has the schema at `/openapi.json`, a page to try it on at `/docs`, and the console at `/`.",
    )
    by_tag: dict[str, list[list[str]]] = {}
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            row = [f"`{method.upper()}`", f"`{path}`", operation["summary"]]
            by_tag.setdefault(operation["tags"][0], []).append(row)
    for tag, rows in by_tag.items():
        lines += [f"## {tag}", "", *table(["method", "path", ""], rows)]
    lines += [PATHS, "", "## Bodies", "", BODIES, ""]
    for name, body in schema["components"]["schemas"].items():
        if name not in NOT_SENT:
            lines += _body(name, body)
    lines += ["## Errors", "", "The status that each gRPC code becomes; any other is 500.", ""]
    lines += table(["code", "status"], [[f"`{code}`", str(status)] for code, status in STATUSES.items()])
    return "\n".join([*lines, ERRORS])


class _Nothing:
    """Stands for the parts of a server, which nothing asks for before there is a request."""

    version = "any"

    def __getattr__(self, name: str) -> None:
        return None


def _body(name: str, body: Mapping[str, Any]) -> list[str]:
    required = body.get("required", ())
    rows = [
        [f"`{field}`", _type(about), _default(field, about, required), about.get("description", "")]
        for field, about in body["properties"].items()
    ]
    return [f"### {name}", "", *table(["field", "type", "default", ""], rows)]


def _default(field: str, about: Mapping[str, Any], required: Sequence[str]) -> str:
    if field in required:
        return "required"
    return f"`{json.dumps(about['default'])}`" if "default" in about else ""


def _type(about: Mapping[str, Any]) -> str:
    if "anyOf" in about:
        return " or ".join(_type(one) for one in about["anyOf"])
    if "$ref" in about:
        name = about["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in about:
        return " or ".join(f"`{json.dumps(value)}`" for value in about["enum"])
    if "const" in about:
        return f"`{json.dumps(about['const'])}`"
    return f"array of {_type(about['items'])}" if about.get("type") == "array" else str(about.get("type", "any"))
