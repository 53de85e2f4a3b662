"""Answers in JSON."""

import json
from typing import Any

from starlette.responses import Response

from agenet.server.limits import Refused


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """In ASCII, so that names with lone surrogates can be returned."""
    return Response(json.dumps(content), status, headers=headers, media_type="application/json")


def refuse(refused: Refused) -> Response:
    return json_response({"error": refused.message}, refused.status, refused.headers)
