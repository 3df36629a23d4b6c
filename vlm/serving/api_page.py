"""An OpenAPI description as one HTML page that needs nothing else: no script, no font, no other host."""

import html
import json
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
h2 {{ margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem }}
h2 small {{ color: #557; font-weight: normal }}
table {{ border-collapse: collapse; width: 100% }}
td, th {{ text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #eee }}
pre {{ background: #f4f4f6; padding: .8rem; overflow-x: auto }}
@media (prefers-color-scheme: dark) {{
  body {{ background: #16161a; color: #ddd }} pre {{ background: #222228 }} td, th, h2 {{ border-color: #333 }}
  a {{ color: #9bf }} h2 small {{ color: #99b }}
}}
</style></head><body>
<h1>{title}</h1><p>{description}</p><p>For programs: <a href="openapi.json">openapi.json</a></p>
{operations}
</body></html>
"""


def api_page(schema: dict[str, Any]) -> str:
    """`schema`: what `FastAPI.openapi()` returns."""
    operations = [
        _operation(schema, method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    title, description = html.escape(schema["info"]["title"]), html.escape(schema["info"]["description"])
    return _PAGE.format(title=title, description=description, operations="\n".join(operations))


def _operation(schema: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> str:
    parts = [f"<h2>{method.upper()} {html.escape(path)} <small>{html.escape(operation['summary'])}</small></h2>"]
    parts.append(f"<p>{html.escape(operation.get('description', ''))}</p>")
    kinds = operation.get("requestBody", {}).get("content", {})
    if kinds:
        wanted = _resolve(schema, next(iter(kinds.values()))["schema"])
        parts.append(f"<h3>Send ({html.escape(' or '.join(kinds))})</h3>{_table(wanted)}")
        for example in wanted.get("examples", []):
            body = html.escape(json.dumps(example, ensure_ascii=False))
            parts.append(f"<pre>curl -H 'Content-Type: application/json' -d '{body}' …{html.escape(path)}</pre>")
    answer = operation["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema")
    if answer:
        many = "A list of" if answer.get("type") == "array" else "One object with"
        parts.append(f"<h3>Get</h3><p>{many}</p>{_table(_resolve(schema, answer.get('items', answer)))}")
    return "\n".join(parts)


def _table(schema: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(_kind(field))}</td>"
        f"<td>{html.escape(field.get('description', ''))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _kind(field: dict[str, Any]) -> str:
    """ "integer, 1 to 1000, default 10" """
    if "anyOf" in field:
        return _kind({**{key: field[key] for key in field if key != "anyOf"}, **field["anyOf"][0]})
    words = [field.get("type", "object")]
    if "items" in field:
        words = [f"list of {_kind(field['items'])}"]
    if "minimum" in field:
        words.append(f"{field['minimum']} to {field['maximum']}" if "maximum" in field else f"from {field['minimum']}")
    if "maxItems" in field:
        words.append(f"at most {field['maxItems']}")
    if field.get("default") is not None:
        words.append(f"default {field['default']}")
    return ", ".join(words)


def _resolve(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    return schema["components"]["schemas"][part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part
