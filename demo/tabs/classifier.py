"""A trained ViT classifier: its five most probable classes and the attention rollout."""

from typing import TypedDict

import gradio as gr

from vlm.demo.actions import PageActions
from vlm.demo.inputs import read_image
from vlm.demo.models.compute_lock import compute_lock
from vlm.demo.models.inspection import ClassPrediction, predict
from vlm.demo.page.components import SharedParts, html_part, text
from vlm.demo.page.events import Upload, api_errors, bind, named_endpoint, upload_path
from vlm.demo.page.texts import PageError
from vlm.demo.search.retrieval import known_sample
from vlm.demo.tabs.classify import RankedLabel
from vlm.demo.views import layout
from vlm.demo.views.models import classifier_answer, classifier_note


class ClassifierAnswer(TypedDict):
    classifier: str
    top: list[RankedLabel]
    classes: int
    rollout: list[list[float]]


def tab(actions: PageActions, shared: SharedParts) -> None:
    names = [entry.name for entry in actions.registry.entries("vit_classifier")]
    html_part(layout.intro("classifier_intro"))
    if not names:
        html_part(classifier_note(None))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            image, examples = shared.box()
        with gr.Column(min_width=300):
            chosen = gr.Dropdown(
                names,
                value=names[0] if names else None,
                label=text("classifier_choice"),
                info=text("classifier_hint" if actions.registry.any_source else "listed_hint"),
                allow_custom_value=actions.registry.any_source,
                elem_id="classifier-choice",
            )
            button = gr.Button(text("classifier_button"), variant="primary", elem_id="classifier-button")
            answer = html_part(layout.empty_state("classifier_empty"), "classifier-answer")

    def answer_html(path: str | None, name: str | None) -> str:
        name = (name or "").strip()
        return classifier_answer(name, _predict(actions, path, name), path)

    def ask(image: Upload | None, name: str | None) -> str:
        return answer_html(upload_path(image), name)

    def take_example(name: str | None, event: gr.EventData) -> tuple[str, str]:
        path = str(known_sample(event.file).path)
        return path, answer_html(path, name)

    bind(button.click, ask, [image, chosen], [answer])
    bind(examples.click, take_example, [chosen], [image, answer])


def endpoints(actions: PageActions) -> None:
    def classifier(image: Upload, name: str = "") -> ClassifierAnswer:
        """The most probable classes of a trained ViT classifier, and the attention rollout.

        image: an image file. name: one that /models lists, empty for the first; on a page that serves its own machine
        also the path of a model folder.
        Returns at most five classes, most probable first, the number of classes, and for each patch, row by row, how
        much of it reached the answer.
        """
        with api_errors():
            entries = actions.registry.entries("vit_classifier")
            name = name or (entries[0].name if entries else "")
            prediction = _predict(actions, upload_path(image), name)
            top = [
                RankedLabel(label=label, probability=probability, match=None) for label, probability in prediction.top
            ]
            return ClassifierAnswer(
                classifier=name, top=top, classes=prediction.classes, rollout=prediction.rollout.grid.tolist()
            )

    named_endpoint(classifier, "classifier")


def _predict(actions: PageActions, path: str | None, name: str) -> ClassPrediction:
    if path is None:
        raise PageError("no_image")
    with compute_lock:
        return predict(actions.registry.classifier(name), read_image(path))
