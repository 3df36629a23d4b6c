"""Findings of a data set check: a table, and one line for each problem with its remedy."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from vlm.training.audit.numbers import LEVELS, LONG, TINY
from vlm.training.audit.reading import Finding, reading_findings
from vlm.training.audit.scan import LONGEST

_SCRIPT_OF = {
    "ja": ("kana", "kanji only"), "zh": ("kanji only",), "ko": ("hangul", "kanji only"), "ru": ("cyrillic",),
    "uk": ("cyrillic",), "ar": ("arabic",), "hi": ("devanagari",), "th": ("thai",), "he": ("hebrew",), "el": ("greek",),
    **dict.fromkeys(("en", "de", "fr", "es", "it", "pt", "nl", "sv", "pl", "tr", "vi", "id"), ("latin",)),
}  # fmt: skip


def findings(found: dict[str, Any], listed: str) -> list[Finding]:
    """Returns one line for each problem.  `listed` is appended to lines about listed samples."""
    return [
        *_broken(found),
        *reading_findings(found, listed),
        *_twice(found, listed),
        *_texts(found, listed),
        *_languages(found["captions"]["scripts"]),
        *_tokens(found["tokens"]),
        *_images(found, listed),
        *_balance(found["classes"]),
    ]


def _broken(found: dict[str, Any]) -> Iterator[Finding]:
    broken = dict(found["broken"])
    if empty := broken.pop("no caption", 0):
        yield Finding(
            "no caption",
            f"{_of(empty, found)} have no caption, or a blank one, and are passed over. Write one, or delete the rows. "
            "If these are many, the wrong column was read: name the right one (--columns caption=NAME).",
        )
    if broken:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in broken.items())
        many = sum(found["broken"].values()) > 0.01 * found["looked_at"]
        outcome = "a run would end there: more than max_broken = 1%" if many else "a run passes over so few"
        yield Finding(
            "broken",
            f"{_of(sum(broken.values()), found)} cannot be used ({reasons}); {outcome}. Get whole copies, or delete "
            "the rows.",
        )
    if not found["sound"]:
        yield Finding("nothing", "No sample is sound, so nothing else was looked at.")


def _twice(found: dict[str, Any], listed: str) -> Iterator[Finding]:
    for leak in found["leaks"]:
        count, of, other = sum(leak[level] for level in LEVELS), leak["of"], leak["also_in"]
        yield Finding(
            "leak",
            f"{count:,} of the {found['splits'][of]:,} images of {of} are in {other} too ({_levels(leak)}): what is "
            f"measured on {of} will look better than it is. Remove them from {other}{listed}.",
        )
    if count := sum(found["duplicates"].values()):
        yield Finding(
            "duplicates",
            f"{_of(count, found)} are there already ({_levels(found['duplicates'])}): they count twice, and unless "
            "they have the same concept, each is the other's wrong answer in a batch. Keep one of each, with all "
            f"captions{listed}.",
        )


def _texts(found: dict[str, Any], listed: str) -> Iterator[Finding]:
    doubts = found["doubts"]
    if count := doubts.get("caption is a file name"):
        yield Finding("file names", f"{count:,} captions are file names and say nothing. Leave them out{listed}.")
    if count := doubts.get("garbled caption"):
        yield Finding(
            "garbled",
            f"{count:,} captions are garbled: text of one encoding, read as another. Write the table anew as UTF-8, or "
            f"repair it (ftfy.fix_text){listed}.",
        )
    if count := doubts.get("markup in caption"):
        yield Finding("markup", f"{count:,} captions hold HTML or web addresses. Take these out{listed}.")
    top = next(iter(found["captions"]["on_several_images"]), None)
    if top and found["captions"]["distinct"] > 1 and top["images"] >= 3 and top["share"] > 0.01:
        yield Finding(
            "same caption",
            f'"{top["caption"][:60]}" is the caption of {top["images"]:,} different images ({top["share"]:.1%}): '
            "they count as one text, and a model cannot tell the images apart. Write better ones, or leave these out.",
        )


def _languages(scripts: list[dict[str, Any]]) -> Iterator[Finding]:
    for language, expected in _SCRIPT_OF.items():
        own = Counter({row["script"]: row["texts"] for row in scripts if row["language"] == language})
        own.pop("no letters", None)
        others = {script: count for script, count in own.items() if script not in expected}
        if sum(others.values()) > 0.05 * sum(own.values()):
            named = ", ".join(f"{count:,} {script}" for script, count in others.items())
            yield Finding(
                "language",
                f"{sum(others.values()):,} of {sum(own.values()):,} texts called {language} are in another script "
                f"({named}). See whether columns or language codes are mixed up.",
            )


def _tokens(tokens: dict[str, Any]) -> Iterator[Finding]:
    if (lost := tokens["lost_share"]) > 0.01:
        letters = " ".join(list(tokens["lost_letters"])[:10])
        yield Finding(
            "tokenizer",
            f"{lost:.1%} of the tokens are single bytes or unknown: the tokenizer has no piece for {letters}. Train "
            "one on these captions: vlm tokenizer DATA --out my-tokenizer.",
        )
    limit, enough = tokens["context_length"], tokens["suggested_context_length"]
    if (cut := tokens["cut_at"][str(limit)]) > 0.01:
        yield Finding(
            "context length",
            f"{cut:.1%} of the texts are longer than the tokenizer's context_length of {limit} and lose their end. "
            f"{enough} would hold 99.5% of them (train_tokenizer --context-length {enough}); or shorten the captions.",
        )


def _images(found: dict[str, Any], listed: str) -> Iterator[Finding]:
    images = found["images"]
    if count := images["uniform"]:
        yield Finding(
            "uniform",
            f"{_of(count, found)} show a single colour: often a failed download, or a white drawing on a transparent "
            f"ground, which is put on white. Delete them, or give them a ground{listed}.",
        )
    if count := images["tiny"]:
        yield Finding(
            "tiny",
            f"{_of(count, found)} are less than {TINY} pixels wide or high: icons or tracking pixels, as a rule. "
            f"Delete them{listed}.",
        )
    if count := images["long"]:
        yield Finding(
            "long",
            f"{_of(count, found)} are more than {LONG:g} times as long as wide, or as wide as long: cut to a square, "
            f"little of them is seen. Delete them, or cut them up yourself{listed}.",
        )
    if (megapixels := images["median_megapixels"]) > 1:
        yield Finding(
            "large",
            f"Half of the images have {megapixels:.1f} megapixels or more: decoding may take longer than training. "
            'Make them smaller once (512 pixels are plenty), or set cache = "disk".',
        )
    if animated := images["animated"]:
        yield Finding("animated", f"{animated:.1%} of the images move: their first frame is used. Is it the right one?")


def _balance(classes: dict[str, int]) -> Iterator[Finding]:
    if not classes:
        return
    common, rare = max(classes, key=lambda name: classes[name]), min(classes, key=lambda name: classes[name])
    if classes[common] > 10 * classes[rare]:
        yield Finding(
            "balance",
            f"The class {common} has {classes[common]:,} images, {rare} only {classes[rare]:,}: the model will "
            f"rarely answer {rare}. Collect more of the rare ones, and look at balanced accuracy.",
        )


def _of(count: int, found: dict[str, Any]) -> str:
    return f"{count:,} of {found['looked_at']:,} samples ({count / found['looked_at']:.2%})"


def _levels(counts: dict[str, Any]) -> str:
    return ", ".join(f"{counts[level]:,} {level}" for level in LEVELS if counts[level])


def summary_table(found: dict[str, Any]) -> str:
    """Two columns for people."""
    images, captions, tokens = found["images"], found["captions"], found["tokens"]
    lines = {"rows": f"{found['rows']:,}"}
    if found["looked_at"] < found["rows"]:
        lines["looked at"] = (
            f"{found['looked_at']:,}, drawn at random (--sample); of pairs of duplicates about "
            f"{(found['looked_at'] / found['rows']) ** 2:.2%} can be seen"
        )
    lines["splits"] = _listing(found["splits"])
    lines["broken"] = _broken_listing(found)
    lines["duplicates"] = _listing(found["duplicates"])
    lines["leaks"] = (
        "; ".join(f"{leak['of']} in {leak['also_in']}: {_levels(leak)}" for leak in found["leaks"]) or "none"
    )
    for side in ("width", "height"):
        lines[side] = _range(images[side], "pixels")
    below = {f"below {side}": f"{share:.1%}" for side, share in images["shorter_side_below"].items() if share}
    lines["shorter side"] = _listing(below)
    kinds = {kind: f"{images[kind]:.1%}" for kind in ("grey", "transparent", "animated") if images[kind]}
    lines["kinds"] = _listing(kinds)
    if found["classes"]:
        counts = list(found["classes"].values())
        lines["classes"] = f"{len(counts):,}, the largest {max(counts):,}, the smallest {min(counts):,} images"
    lines["captions per image"] = _listing({f"{count}": times for count, times in captions["per_image"].items()})
    lines["captions"] = f"{captions['distinct']:,} different; {captions['keywords']:,} keywords"
    top = [f'"{row["caption"][:30]}" {row["images"]:,}' for row in captions["on_several_images"][:3]]
    lines["on several images"] = ", ".join(top) or "none"
    lines["script (not language)"] = _listing(
        {f"{row['language']} {row['script']}".strip(): row["texts"] for row in captions["scripts"]}
    )
    lines["letters of a text"] = _range(captions["letters"], "")
    lines["tokens of a text"] = _range(tokens["ids"], "")
    lines["cut at context length"] = _listing({limit: f"{share:.2%}" for limit, share in tokens["cut_at"].items()})
    lines["suggested"] = f"context_length = {tokens['suggested_context_length']} (holds 99.5%)"
    lines["tokens without a piece"] = f"{tokens['lost_share']:.2%}  {' '.join(tokens['lost_letters'])}".strip()
    return "\n".join(f"{name:<23} {text}" for name, text in lines.items())


def _broken_listing(found: dict[str, Any]) -> str:
    """The reasons, how often each, and the first samples of each by name."""
    parts = []
    for reason, count in found["broken"].items():
        first = [_printable(sample["uid"]) for sample in found["first_broken"].get(reason, [])]
        more = ", ..." if len(first) < count else ""
        parts.append(f"{reason} {count:,}" + (f" ({', '.join(first)}{more})" if first else ""))
    return ", ".join(parts) or "none"


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _listing(counts: dict[str, Any]) -> str:
    shown = ", ".join(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
                      for name, value in counts.items() if value)  # fmt: skip
    return shown or "none"


def _range(values: dict[str, int], unit: str) -> str:
    more = "+" if values["max"] >= LONGEST and not unit else ""
    return (
        f"{values['min']:,} to {values['max']:,}{more} {unit}".strip()
        + f", median {values['median']:,}, 95% within {values['95%']:,}"
    )
