"""Recognises columns by common names: images, captions, classes, languages."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vlm.errors import DataError
from vlm.training.data.rows import ColumnNames

IMAGE = ("image", "filepath", "file_path", "file_name", "filename", "image_path", "img_path", "path", "img", "picture",
         "photo", "file", "image_name")  # fmt: skip
CAPTION = ("captions", "caption", "text", "title", "texts", "sentences", "sentence", "description", "alt", "alt_text",
           "comment")  # fmt: skip
KEYWORDS = ("keywords", "tags")
LABEL = ("label", "class", "class_name", "category")
LANGUAGE = ("language", "lang", "locale")
UID = ("uid", "id", "key", "__key__")
CONCEPT = ("concept",)
SPLIT = ("split",)
_ROLES = {"image": IMAGE, "caption": CAPTION, "keywords": KEYWORDS, "label": LABEL, "language": LANGUAGE,
          "uid": UID, "concept": CONCEPT, "split": SPLIT}  # fmt: skip
_LANGUAGE_CODE = r"(?:_([a-z]{2})(?:_[A-Z]{2})?)?"
_NUMBER = r"(?:_?\d+)?"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the columns of a table; None or empty where it has none of that kind."""

    image: str | None = None
    captions: dict[str, list[str]] = field(default_factory=dict)  # language, "" unknown -> columns
    keywords: dict[str, list[str]] = field(default_factory=dict)
    label: str | None = None
    language: str | None = None  # of all captions of the row
    uid: str | None = None
    concept: str | None = None
    split: str | None = None

    @property
    def texts(self) -> list[str]:
        """All that a caption may come from."""
        single = [name for name in (self.label, self.language) if name]
        return single + [name for part in (self.captions, self.keywords) for names in part.values() for name in names]


def recognise(source: str, present: Sequence[str], named: ColumnNames) -> Columns:
    """The columns of a table that has the columns `present`; `named` comes first.

    `DataError`: no images, or neither captions nor classes, or a named column that is not there.
    """
    check_roles(named)
    for names in named.values():
        if missing := [name for name in _listed(names) if name not in present]:
            raise DataError(f"{source} has no column {', '.join(missing)}. {_it_has(present, missing)}")
    singles = {
        role: _single(role, present, named) for role in ("image", "label", "language", "uid", "concept", "split")
    }
    columns = Columns(
        captions=by_language("caption", CAPTION, present, named),
        keywords=by_language("keywords", KEYWORDS, present, named),
        **singles,
    )
    if columns.image is None:
        if urls := [name for name in present if name.lower() in ("url", "image_url", "img_url")]:
            raise DataError(
                f"{source} has addresses ({urls[0]}), no images. Fetch them: img2dataset --url_list {source} ..."
            )
        raise DataError(f"{source} has no column with images. {_it_has(present, IMAGE)} {_name_it('image')}")
    if not columns.captions and columns.label is None:
        raise DataError(f"{source} has no column with captions. {_it_has(present, CAPTION)} {_name_it('caption')}")
    return columns


def check_roles(named: ColumnNames) -> None:
    """`DataError` where `named` has an entry that no column is for."""
    for role in named:
        if role not in _ROLES:
            near = difflib.get_close_matches(role, _ROLES, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise DataError(f"columns has no entry '{role}'.{hint} It knows: {', '.join(_ROLES)}.")


def _single(role: str, present: Sequence[str], named: ColumnNames) -> str | None:
    if role in named:
        return _listed(named[role])[0]
    lower = {name.lower(): name for name in reversed(present)}
    return next((lower[name] for name in _ROLES[role] if name in lower), None)


def by_language(role: str, known: Sequence[str], present: Sequence[str], named: ColumnNames) -> dict[str, list[str]]:
    """language -> columns: caption, captions_en, caption_ja, caption_0, caption_1; of one stem, the first known."""
    found: dict[str, list[str]] = {}
    if role in named:
        for name in _listed(named[role]):
            suffix = re.search(r"_([a-z]{2})$", name)
            found.setdefault(suffix[1] if suffix else "", []).append(name)
        return found
    for stem in known:
        pattern = re.compile(stem + _LANGUAGE_CODE + _NUMBER, re.IGNORECASE)
        for name in present:
            if match := pattern.fullmatch(name):
                found.setdefault((match[1] or "").lower(), []).append(name)
        if found:
            return found
    return found


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _it_has(present: Sequence[str], wanted: Iterable[str]) -> str:
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in present[:20])
    shown = (shown if len(shown) <= 300 else shown[:300] + " ...") or "none"
    near = [match for name in wanted for match in difflib.get_close_matches(name, present, n=1, cutoff=0.8)]
    return f"It has: {shown}." + (f" Did you mean {near[0]}?" if near and near[0].isprintable() else "")


def _name_it(role: str) -> str:
    return f'Name it in the recipe: [data] columns = {{ {role} = "..." }}.'
