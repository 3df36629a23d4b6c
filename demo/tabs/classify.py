"""Zero-shot classification: an image or many, any labels, a ranking, and where a label is."""

from pathlib import Path
from typing import Any, TypedDict

import gradio as gr

from vlm.demo import views
from vlm.demo.actions import Actions, Ranked, sentences
from vlm.demo.gallery import EXAMPLES
from vlm.demo.searching import known_sample
from vlm.demo.texts import NoAnswer
from vlm.demo.wiring import Upload, endpoint, html, image_and_examples, language_of, on, path_of, plainly, text
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


def tab(actions: Actions) -> None:
    html(views.intro("classify_intro"))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            image, examples = image_and_examples()
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
            ranking = html(views.nothing_yet("ranking_empty"), "ranking")
            where = html("", "where")
            with gr.Accordion(text("templates"), open=False):
                choices = html(views.templates(list(TEMPLATES)))
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
                table = html("", "table")

    def shown(path: str | None, typed: str, written: str) -> str:
        ranked = actions.classify(path, typed, written)
        asked = sentences(ranked[0].label, written)
        return views.bars(ranked, none_fits=actions.none_fits(ranked), asked=asked)

    def classify(image: Upload | None, typed: str, written: str) -> tuple[str, str]:
        return "", shown(path_of(image), typed, written)

    def take_example(event: gr.EventData) -> tuple[str, str, str, str, str]:
        path = known_sample(event.file).path
        names = EXAMPLES["classify"].get(event.file, {}).get(language_of(event), [])
        return str(path), "\n".join(names), "", "", shown(str(path), "\n".join(names), "")

    def show_where(image: Upload | None, event: gr.EventData) -> str:
        label = str(event.label)
        return views.where(label, actions.where(path_of(image), label).figure)

    def classify_all(images: list[Upload] | None, typed: str, written: str) -> str:
        return views.table(actions.classify_all(named(images), typed, written))

    def take_templates(event: gr.EventData) -> str:
        return TEMPLATES.get(str(event.template), "")

    on(button.click, classify, [image, labels, templates], [where, ranking])
    on(examples.click, take_example, [], [image, labels, templates, where, ranking])
    on(ranking.click, show_where, [image], [where])
    on(all_button.click, classify_all, [images, labels, templates], [table])
    on(choices.click, take_templates, [], [templates])


def endpoints(actions: Actions) -> None:
    def classify(image: Upload, labels: str | list[str], templates: str | list[str] = "") -> list[RankedLabel]:
        """Which of the labels fits the image best: zero-shot classification.

        image: an image file. labels: one per line or separated by commas, or a list; English, Japanese or mixed.
        templates: sentences with {} where the label goes, one per line or a list; empty: by each label's language.
        Returns the labels, most probable first; the probabilities add up to 1. match is the probability of each label
        on its own, null where the model only compares labels.
        """
        with plainly():
            return [_ranked(ranked) for ranked in actions.classify(path_of(image), labels, templates)]

    def classify_all(
        images: list[Upload], labels: str | list[str], templates: str | list[str] = ""
    ) -> list[ClassifiedImage]:
        """The same for up to 100 images; a broken one has its reason in `error`.

        none_fits: even the best label is weak.
        """
        with plainly():
            return [
                ClassifiedImage(
                    name=row.name,
                    labels=[_ranked(ranked) for ranked in row.ranking],
                    none_fits=row.none_fits,
                    error=str(row.no or ""),
                )
                for row in actions.classify_all(named(images), labels, templates)
            ]

    def where(image: Upload, label: str) -> Where:
        """Where in the image a label is: rows of patches, positive where a patch makes the image more like it.

        The numbers are differences of the cosine similarity.
        """
        with plainly():
            return Where(label=label, map=actions.where(path_of(image), label).grid.tolist())

    endpoint(classify, "classify")
    endpoint(classify_all, "classify_all")
    endpoint(where, "where")


def named(images: Any) -> list[tuple[str, str]]:
    """(name, path) of each upload."""
    if images is not None and not isinstance(images, list):
        raise NoAnswer("not an upload")
    paths = [path_of(image) for image in images or []]
    if None in paths:
        raise NoAnswer("not an upload")
    return [(Path(path).name, path) for path in paths if path is not None]


def _ranked(ranked: Ranked) -> RankedLabel:
    return RankedLabel(label=ranked.label, probability=ranked.probability, match=ranked.match)
