"""A trained ViT classifier: its five most probable classes, and which parts of the image reached them."""

from typing import TypedDict

import gradio as gr

from vlm.demo import inside, inside_views, views
from vlm.demo.actions import Actions, read_image
from vlm.demo.searching import computing, known_sample
from vlm.demo.tabs.classify import RankedLabel
from vlm.demo.texts import NoAnswer
from vlm.demo.wiring import Upload, endpoint, html, image_and_examples, on, path_of, plainly, text


class ClassifierAnswer(TypedDict):
    classifier: str
    top: list[RankedLabel]
    classes: int
    rollout: list[list[float]]


def tab(actions: Actions) -> None:
    names = [entry.name for entry in actions.shelf.entries("vit_classifier")]
    html(views.intro("classifier_intro"))
    if not names:
        html(inside_views.classifier_note(None))
    with gr.Row(equal_height=False):
        with gr.Column(min_width=300):
            image, examples = image_and_examples()
        with gr.Column(min_width=300):
            chosen = gr.Dropdown(
                names,
                value=names[0] if names else None,
                label=text("classifier_choice"),
                info=text("classifier_hint" if actions.shelf.anywhere else "listed_hint"),
                allow_custom_value=actions.shelf.anywhere,
                elem_id="classifier-choice",
            )
            button = gr.Button(text("classifier_button"), variant="primary", elem_id="classifier-button")
            answer = html(views.nothing_yet("classifier_empty"), "classifier-answer")

    def shown(path: str | None, name: str | None) -> str:
        name = (name or "").strip()
        return inside_views.classifier_answer(name, _ask(actions, path, name))

    def ask(image: Upload | None, name: str | None) -> str:
        return shown(path_of(image), name)

    def take_example(name: str | None, event: gr.EventData) -> tuple[str, str]:
        path = str(known_sample(event.file).path)
        return path, shown(path, name)

    on(button.click, ask, [image, chosen], [answer])
    on(examples.click, take_example, [chosen], [image, answer])


def endpoints(actions: Actions) -> None:
    def classifier(image: Upload, name: str = "") -> ClassifierAnswer:
        """What a trained ViT classifier says of an image: its most probable classes, and the attention rollout.

        image: an image file. name: one that /models lists, empty for the first; on a page that serves its own machine
        also the path of a model folder.
        Returns at most five classes, most probable first, the number of classes, and for each patch, row by row, how
        much of it reached the answer.
        """
        with plainly():
            entries = actions.shelf.entries("vit_classifier")
            name = name or (entries[0].name if entries else "")
            given = _ask(actions, path_of(image), name)
            top = [RankedLabel(label=label, probability=probability, match=None) for label, probability in given.top]
            return ClassifierAnswer(
                classifier=name, top=top, classes=given.classes, rollout=given.rollout.grid.tolist()
            )

    endpoint(classifier, "classifier")


def _ask(actions: Actions, path: str | None, name: str) -> inside.Answer:
    if path is None:
        raise NoAnswer("no_image")
    with computing:
        return inside.answer(actions.shelf.classifier(name), read_image(path))
