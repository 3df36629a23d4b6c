"""Writes docs/demo-api.md and docs/demo-api.ja.md from the endpoints as the page offers them.

python docs/write_demo_api.py
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
JAPANESE = ROOT / "demo" / "api.ja.json"
WORDS = {
    "en": {
        "title": "# The demo for programs\n\n[日本語](demo-api.ja.md)",
        "intro": "Everything the page does has a named endpoint. `python -m demo` serves them on this machine.",
        "gives": "Gives",
        "takes": "| takes | type | default |",
        "needed": "needed",
        "written": "Written by `python docs/write_demo_api.py`.",
    },
    "ja": {
        "title": "# デモの API\n\n[English](demo-api.md)",
        "intro": "ページでできることには、すべて名前つきの口があります。`python -m demo` で手元に立ち上がります。",
        "gives": "戻り値",
        "takes": "| 引数 | 型 | 省略時 |",
        "needed": "必須",
        "written": "`python docs/write_demo_api.py` が書いたものです。",
    },
}
EXAMPLE = """```python
from gradio_client import Client, handle_file

demo = Client("http://127.0.0.1:7860")
demo.predict(image=handle_file("dog.png"), labels="犬、猫", api_name="/classify")
demo.predict(text="赤いりんご", api_name="/search")
```"""


def pages(endpoints: dict[str, Any]) -> dict[str, str]:
    """Language -> Markdown.  KeyError names an endpoint that nobody has described in Japanese."""
    japanese = json.loads(JAPANESE.read_text(encoding="utf-8"))
    return {
        "en": _page("en", endpoints, {name: told["description"] for name, told in endpoints.items()}),
        "ja": _page("ja", endpoints, {name: japanese[name] for name in endpoints}),
    }


def _page(language: str, endpoints: dict[str, Any], descriptions: dict[str, str]) -> str:
    words = WORDS[language]
    parts = [words["title"], words["intro"], EXAMPLE]
    for name, told in endpoints.items():
        description = " ".join(descriptions[name].split())
        rows = "\n".join(_row(one, words["needed"]) for one in told["parameters"])
        table = f"\n\n{words['takes']}\n|---|---|---|\n{rows}" if rows else ""
        gives = ", ".join(f"`{_type(one)}`" for one in told["returns"]) or "-"
        parts.append(f"## {name}\n\n{description}{table}\n\n{words['gives']}: {gives}")
    return "\n\n".join([*parts, words["written"]]) + "\n"


def _row(one: dict[str, Any], needed: str) -> str:
    default = f"`{one['parameter_default']!r}`" if one["parameter_has_default"] else needed
    return f"| `{one['parameter_name']}` | `{_type(one)}` | {default} |"


def _type(one: dict[str, Any]) -> str:
    return " ".join(one["python_type"]["type"].split()).replace("|", "\\|")


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from vlm.demo.actions import Actions
    from vlm.demo.app import build

    endpoints: Any = build(Actions("mini")).get_api_info()
    for language, page in pages(endpoints["named_endpoints"]).items():
        suffix = "" if language == "en" else f".{language}"
        (ROOT / "docs" / f"demo-api{suffix}.md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
