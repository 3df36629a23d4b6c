"""Hooks of `mkdocs build`; `mkdocs.yml` names this file under `hooks`.

1. A page may link to any file of the repository.  Files outside `docs/` are added to the site under `source/`:
   Markdown as a page, other text as a page of code, anything else as it is.
2. Japanese pages have `lang="ja"` and the theme's Japanese words; a line break between two wide characters is removed.
3. The language menu of each page links to the same page in the other language.
4. The build fails if a page loads anything from another host.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SEEDS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "LICENSE")  # pages of the site, linked or not
LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".json": "json", "": "text", ".txt": "text"}

_CODE_OR_LINK = re.compile(r"^ *```.*?^ *```|`[^`\n]+`|(\]\()([^)\s]+)(\))", re.MULTILINE | re.DOTALL)
_WIDE = "[\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef]"  # kana, kanji, full-width signs
_PRE_OR_BREAK = re.compile(rf"(<pre.*?</pre>)|(?<={_WIDE})\n(?={_WIDE})", re.DOTALL)
_LOADED = re.compile(
    r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*>"
    r"|<link\b(?![^>]*rel=[\"']?(?:canonical|alternate))[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files outside `docs/` that pages link to, and those that these link to, and so on."""
    waiting = [*SEEDS, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/") or path.endswith(".py"):
            files.append(_taken_in(path, config))
        if path.endswith(".md"):
            targets = {target for target in _linked(path) if (ROOT / target).is_file()} - seen
            waiting += sorted(target for target in targets if not _published(target))
            seen |= targets
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages of the site."""
    here, source = page.file.src_uri, _repository_path(page.file.src_uri)

    def linked(found: re.Match[str]) -> str:
        if found[2] is None or _elsewhere(found[2]):
            return found[0]
        address, mark, anchor = found[2].partition("#")
        target = posixpath.relpath(_site_path(_resolve(source, address)), posixpath.dirname(here))
        return f"{found[1]}{target}{mark}{anchor}{found[3]}"

    return _CODE_OR_LINK.sub(linked, markdown).replace("<details>", '<details markdown="1">')


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Removes line breaks inside Japanese sentences, which browsers would show as spaces."""
    return _PRE_OR_BREAK.sub(lambda found: found[1] or "", content) if _japanese(page) else content


def on_page_context(context: dict[str, Any], page: Page, config: MkDocsConfig, nav: Navigation) -> dict[str, Any]:
    """The theme's words in the language of the page, and a language menu that stays on the page."""
    config.theme["language"] = "ja" if _japanese(page) else "en"
    pages = {english.file.src_uri: english.file.url for english in nav.pages}
    config.extra["alternate"] = [
        {"name": name, "lang": language, "link": pages[uri] or "."}
        for name, language, uri in (("English", "en", _in_english(page)), ("日本語", "ja", _in_japanese(page)))
        if uri in pages
    ]
    return context


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Names the search dialog for screen readers; raises PluginError where a page loads anything from another host."""
    if loaded := _LOADED.search(output):
        raise PluginError(f"{page.file.src_uri}: loads from another host: {loaded[0]}. Copy the file into docs/.")
    name = "検索" if _japanese(page) else "Search"
    return output.replace(
        'data-md-component="search" role="dialog"', f'data-md-component="search" role="dialog" aria-label="{name}"'
    )


def _taken_in(path: str, config: MkDocsConfig) -> File:
    """A file of the repository as a file of the site."""
    file, uri = ROOT / path, _site_path(path)
    if path.endswith(".md"):
        return File.generated(config, uri, content=file.read_text(encoding="utf-8"))
    if not uri.endswith(".md"):
        return File.generated(config, uri, abs_src_path=str(file))
    text = file.read_text(encoding="utf-8").rstrip()
    page = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n`````{LANGUAGES[file.suffix]}\n{text}\n`````\n"
    return File.generated(config, uri, content=page)


def _linked(path: str) -> Iterator[str]:
    for found in _CODE_OR_LINK.finditer((ROOT / path).read_text(encoding="utf-8")):
        if found[2] is not None and not _elsewhere(found[2]):
            yield _resolve(path, found[2].partition("#")[0])


def _resolve(source: str, address: str) -> str:
    """Where a link in the file `source` leads, from the root; a link to a heading of the same page, to the page."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), address)) if address else source


def _elsewhere(address: str) -> bool:
    return re.match(r"[a-z]+:|//", address) is not None


def _published(path: str) -> bool:
    return path.startswith("docs/") and not path.endswith(".py")


def _site_path(path: str) -> str:
    if _published(path):
        return path.removeprefix("docs/")
    as_code = Path(path).suffix in LANGUAGES
    return f"source/{path}.md" if as_code else f"source/{path}"


def _repository_path(uri: str) -> str:
    if not uri.startswith("source/"):
        return f"docs/{uri}"
    path = uri.removeprefix("source/")
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def _japanese(page: Page) -> Any:
    return page.file.src_uri.endswith(".ja.md") or page.file.src_uri.startswith("guide/ja/")


def _in_english(page: Page) -> str:
    uri = page.file.src_uri
    return uri.replace("guide/ja/", "guide/en/", 1) if uri.startswith("guide/ja/") else uri.replace(".ja.md", ".md")


def _in_japanese(page: Page) -> str:
    uri = _in_english(page)
    return (
        uri.replace("guide/en/", "guide/ja/", 1) if uri.startswith("guide/en/") else f"{uri.removesuffix('.md')}.ja.md"
    )
