"""The models to which the page can be switched, consent and progress as HTML."""

from collections.abc import Sequence

from vlm.demo.models.switching import OfferedModel
from vlm.demo.page.texts import LANGUAGES, TEXTS, bilingual, both, escape

MEGABYTE = 1e6


def offered(models: Sequence[OfferedModel], source: str) -> str:
    """One row per model, with a button that switches the page to it.

    Args:
        models: what is offered.
        source: the model of the page.
    """
    return f'<ul class="offered">{"".join(_row(model, source) for model in models)}</ul>'


def consent(model: OfferedModel, size: int | None) -> str:
    """Describes a download and shows the button that starts it.

    Args:
        model: the chosen one.
        size: bytes to download, as the hub says; None: unknown.
    """
    key = "size_unknown" if size is None else "size_known"
    megabytes = f"{(size or 0) / MEGABYTE:,.0f}"
    line = {
        language: TEXTS["switch_consent"][language].format(
            name=model.name,
            size=TEXTS[key][language].format(megabytes=megabytes),
            licence=model.licence or "-",
        )
        for language in LANGUAGES
    }
    return (
        f'<div class="consent"><p role="status">{bilingual(line)}</p>'
        f'<p><button type="button" class="plain" data-agree="{escape(model.name)}">{both("remote_button")}</button> '
        f'<button type="button" class="plain" data-cancel="1">{both("cancel")}</button></p></div>'
    )


def step(key: str, name: str, done: int = 0, total: int | None = None) -> str:
    """One step of the switch, with a bar.

    Args:
        key: the step, in texts.json.
        name: the model.
        done: how much is done.
        total: of how much; None or 0: unknown.
    """
    share = f'value="{min(1.0, done / total):.3f}"' if total else ""
    line = both(key, name=name, done=f"{done:,}", total=f"{total:,}" if total else "?")
    return f'<p class="intro" role="status">{line}</p><progress class="fetched" {share} max="1"></progress>'


def switched(name: str) -> str:
    """The end of the switch."""
    return f'<p class="intro" role="status">{both("switch_done", name=name)}</p>'


def _row(model: OfferedModel, source: str) -> str:
    name = escape(model.name)
    purpose = bilingual(model.purpose) if model.purpose else both("own_model")
    place = both("on_this_machine") if model.here else both("to_download", megabytes=f"{model.size / MEGABYTE:,.0f}")
    licence = f" · {escape(model.licence)}" if model.licence else ""
    button = f'<button type="button" class="plain" data-model="{name}">{both("use_model", name=model.name)}</button>'
    if source in (model.name, model.source):
        button = f"<strong>{both('in_use')}</strong>"
    return f"<li><div><strong>{name}</strong> {purpose}<br><small>{place}{licence}</small></div>{button}</li>"
