"""JSON answers, and one line for every error."""

import json
from typing import Any

from fastapi.responses import JSONResponse


class Answer(JSONResponse):
    """JSON in which file names that are not UTF-8 stay valid, as the commands print them."""

    def render(self, content: Any) -> bytes:
        """UTF-8."""
        return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def problem(status: int, line: str) -> Answer:
    """An error: `{"error": line}`.

    Args:
        status: HTTP status.
        line: what came, what was wanted, what to do.
    """
    return Answer({"error": " ".join(line.split())[:1000]}, status)
