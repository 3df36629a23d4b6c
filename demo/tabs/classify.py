"""Zero-shot classification: rank labels for one or many images, and show where a label is."""

from pathlib import Path
from typing import Any, TypedDict

import gradio as gr

from vlm.demo.actions import PageActions, ScoredLabel, label_prompts
from vlm.demo.page.components import SharedParts, html_part, text
from vlm.demo.page.events import Upload, api_errors, bind, event_language, named_endpoint, upload_path
from vlm.demo.page.texts import PageError
from vlm.demo.search.retrieval import known_sample
from vlm.demo.search.samples import EXAMPLES
from vlm.demo.views import classification, layout
from vlm.demo.views.layout import drawings_only
from vlm.zero_shot import label_sentences

ENGLISH = "\n".join(label_sentences("{}"))
JAPANESE = "\n".join(label_sentences("猫")).replace("猫", "{}")
BY_LANGUAGE = f"{ENGLISH}\n{JAPANESE}"
TEMPLATES = {"auto": "", "plain": "{}", "en": ENGLISH, "ja": JAPANESE}


class RankedLabel(TypedDict):
    label: str
    probability: float
    match: float | None


class ClassifiedImage(TypedDict):
    name: str
    labels: list[RankedLabel]
    none_fits: bool
    error: str


class Where(TypedDict):
    label: str
    map: list[list[float]]


def tab(actions: PageActions, shared: SharedParts) -> None:
    html_part(layout.intro("classify_intro"))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            image, examples = shared.box()
        with gr.Column(min_width=300):
            labels = gr.Textbox(
                value="",
                label=text("labels"),
                info=text("labels_hint"),
                placeholder=text("labels_placeholder"),
                lines=4,
                max_lines=10,
                elem_id="labels",
            )
            button = gr.Button(text("classify_button"), variant="primary", elem_id="classify-button")
            ranking = html_part(layout.empty_state("ranking_empty"), "ranking")
            where = html_part("", "where")
            with gr.Accordion(text("templates"), open=False):
                choices = html_part(classification.template_buttons(list(TEMPLATES)))
                templates = gr.Textbox(
                    value="",
                    label=text("templates"),
                    placeholder=BY_LANGUAGE,
                    lines=4,
                    max_lines=8,
                    elem_id="templates",
                )
            with gr.Accordion(text("several"), open=False):
                images = gr.File(
                    label=text("images"), file_count="multiple", type="filepath", height=140, elem_id="images"
                )
                all_button = gr.Button(text("classify_all_button"), elem_id="classify-all-button")
                table = html_part("", "table")

    def ranking_html(path: str | None, typed: str, written: str) -> str:
        ranked = actions.classify(path, typed, written)
        return classification.ranking_part(
            ranked,
            none_fits=(weak := actions.none_fits(ranked)),
            prompts=label_prompts(ranked[0].label, written),
            image=path,
            unknown=actions.unknown([scored.label for scored in ranked]),
            advice=drawings_only(actions.source, may_switch=actions.registry.any_source) if weak else "",
        )

    def classify(image: Upload | None, typed: str, written: str) -> tuple[str, str]:
        return "", ranking_html(upload_path(image), typed, written)

    def take_example(event: gr.EventData) -> tuple[str, str, str, str, str]:
        path = known_sample(event.file).path
        names = EXAMPLES["classify"].get(event.file, {}).get(event_language(event), [])
        return str(path), "\n".join(names), "", "", ranking_html(str(path), "\n".join(names), "")

    def show_where(image: Upload | None, event: gr.EventData) -> str:
        label = str(event.label)
        return classification.heat_map(label, actions.locate(upload_path(image), label).figure)

    def classify_all(images: list[Upload] | None, typed: str, written: str) -> str:
        return classification.table(actions.classify_all(named(images), typed, written))

    def take_templates(event: gr.EventData) -> str:
        return TEMPLATES.get(str(event.template), "")

    bind(button.click, classify, [image, labels, templates], [where, ranking])
    bind(examples.click, take_example, [], [image, labels, templates, where, ranking])
    bind(ranking.click, show_where, [image], [where])
    bind(all_button.click, classify_all, [images, labels, templates], [table])
    bind(choices.click, take_templates, [], [templates])


def endpoints(actions: PageActions) -> None:
    def classify(image: Upload, labels: str | list[str], templates: str | list[str] = "") -> list[RankedLabel]:
        """Zero-shot classification of one image by labels.

        image: an image file. labels: one per line or separated by commas, or a list; English, Japanese or mixed.
        templates: sentences with {} where the label goes, one per line or a list; empty: by each label's language.
        Returns the labels, most probable first; the probabilities add up to 1. match is the probability of each label
        on its own, null where the model only compares labels.
        """
        with api_errors():
            return [_ranked_label(scored) for scored in actions.classify(upload_path(image), labels, templates)]

    def classify_all(
        images: list[Upload], labels: str | list[str], templates: str | list[str] = ""
    ) -> list[ClassifiedImage]:
        """The same for up to 100 images; a broken one has its reason in `error`.

        none_fits: even the best label is weak.
        """
        with api_errors():
            return [
                ClassifiedImage(
                    name=row.name,
                    labels=[_ranked_label(scored) for scored in row.ranking],
                    none_fits=row.none_fits,
                    error=str(row.error or ""),
                )
                for row in actions.classify_all(named(images), labels, templates)
            ]

    def where(image: Upload, label: str) -> Where:
        """Relevance map of a label: rows of patches, positive where a patch raises the similarity.

        The numbers are differences of the cosine similarity.
        """
        with api_errors():
            return Where(label=label, map=actions.locate(upload_path(image), label).grid.tolist())

    named_endpoint(classify, "classify")
    named_endpoint(classify_all, "classify_all")
    named_endpoint(where, "where")


def named(images: Any) -> list[tuple[str, str]]:
    """(file name, path) of each upload."""
    if images is not None and not isinstance(images, list):
        raise PageError("not an upload")
    paths = [upload_path(image) for image in images or []]
    if None in paths:
        raise PageError("not an upload")
    return [(Path(path).name, path) for path in paths if path is not None]


def _ranked_label(scored: ScoredLabel) -> RankedLabel:
    return RankedLabel(label=scored.label, probability=scored.probability, match=scored.match)
