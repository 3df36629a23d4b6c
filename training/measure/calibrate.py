"""What a cosine of a model is worth: the probability that an image answers a text, fitted on validation pairs.

All three validation splits of picture-words, concepts shuffled and cut in two: each half is a gallery, the first
captions of its concepts are the queries, in each language.  The best 10 images of each query are pairs (cosine, is it
correct), and a logistic regression of them (Platt 1999) gives P = sigmoid(scale cos + bias): for what a search shows,
not for the many pairs that nobody sees.  How reliable that is, is measured on the half that it was not fitted to, each
way.  The numbers stored come from both.  Test splits are never read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from vlm.calibration import Calibration
from vlm.checkpoint.load import load
from vlm.checkpoint.save import save_calibration
from vlm.embedder import Embedder
from vlm.metrics import calibration_bins, calibration_error
from vlm.training.measure.evaluate import VALIDATION, concept_texts, embed_all_images, open_unseen

SHOWN = 10  # K, images that a search shows
BINS = 10
HEADING = "## How probable a match is"


class Answers(NamedTuple):
    """The best hits of Q queries in a gallery, and the best there would be without the correct images."""

    language: str
    cosines: Tensor  # (Q, K)
    correct: Tensor  # (Q, K) bool
    best_wrong: Tensor  # (Q,)
    half: Tensor  # (Q,) bool, which half of the concepts


class MatchReliability(NamedTuple):
    """Of queries that the calibration was not fitted to."""

    language: str
    queries: int
    shown: float  # mean probability of the images shown ...
    true: float  # ... and the share of them that is correct
    ece: float  # expected calibration error, Guo et al. 2017, over all images shown
    brier: float
    brier_constant: float  # of always saying `true`
    first: float  # the same two of the first image alone
    first_true: float
    refused: float  # queries with a correct image in the gallery that are told "no good match"
    refused_right: float  # ... although the first image was correct
    refused_without: float  # queries whose correct images are taken out, that are told so


def calibrate_folder(folder: Path) -> str:
    """Calibrate the model in `folder`, write calibration and card into it, and return the card's section."""
    calibration, found = calibrate(load(folder))
    readme = folder / "README.md"
    card = readme.read_text(encoding="utf-8").split(f"\n{HEADING}\n")[0].rstrip() + "\n\n"
    save_calibration(folder, calibration, card + section(calibration, found))
    return section(calibration, found)


def calibrate(embedder: Embedder) -> tuple[Calibration, list[MatchReliability]]:
    answers = validation_answers(embedder)
    everything = fit(answers)
    halves = {half: fit([of_half(a, half) for a in answers]) for half in (True, False)}
    found = []
    for one in answers:
        probabilities = torch.where(
            one.half[:, None], halves[False].probability(one.cosines), halves[True].probability(one.cosines)
        )
        wrong = torch.where(
            one.half, halves[False].probability(one.best_wrong), halves[True].probability(one.best_wrong)
        )
        found.append(match_reliability(one, probabilities, wrong, everything.line))
    return everything, found


def validation_answers(embedder: Embedder) -> list[Answers]:
    """Of each language.  A half is a gallery of its own: the images and the captions of every other concept."""
    pairs = open_unseen(embedder, VALIDATION)
    images = embed_all_images(embedder, pairs)
    concepts = sorted(set(pairs.groups.tolist()))
    shuffled = np.random.default_rng(0).permutation(concepts)
    first = set(shuffled[: len(shuffled) // 2].tolist())
    answers = []
    for language in pairs.languages:
        parts = []
        for half in (True, False):
            rows = [i for i, group in enumerate(pairs.groups.tolist()) if (group in first) is half]
            texts, correct = concept_texts(pairs.select(rows), language)
            parts.append(best(embedder.embed_texts(texts) @ images[rows].T, correct, language, half))
        answers.append(
            Answers(language, *(torch.cat(both) for both in zip(*(part[1:] for part in parts), strict=True)))
        )
    return answers


def best(scores: Tensor, correct: Tensor, language: str, half: bool) -> Answers:
    cosines, places = scores.topk(min(SHOWN, scores.shape[1]))
    best_wrong = scores.masked_fill(correct, -1).amax(1)
    return Answers(language, cosines, correct.gather(1, places), best_wrong, torch.full((len(scores),), half))


def of_half(answers: Answers, half: bool) -> Answers:
    mask = answers.half == half
    return Answers(answers.language, *(value[mask] for value in answers[1:]))


def fit(answers: Sequence[Answers]) -> Calibration:
    """One line for all languages: that of each differs from it by less than what is measured."""
    cosines = torch.cat([one.cosines.flatten() for one in answers]).double().numpy()
    correct = torch.cat([one.correct.flatten() for one in answers]).numpy()
    if correct.all() or not correct.any():
        raise ValueError(f"{correct.sum()} of {len(correct)} validation hits are correct: nothing to calibrate with.")
    fitted = LogisticRegression(C=1e6, max_iter=1000).fit(cosines[:, None], correct)  # as good as no penalty
    scale, bias = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    queries = sum(len(one.cosines) for one in answers)
    return Calibration(scale=scale, bias=bias, data=f"{queries} captions of the validation splits of picture-words")


def match_reliability(answers: Answers, probabilities: Tensor, wrong: Tensor, line: float) -> MatchReliability:
    """`probabilities` (Q, K) of the hits, `wrong` (Q,) of the best image that is not correct."""
    p, y = probabilities.double(), answers.correct.double()
    refused = p[:, 0] < line
    right = answers.correct[:, 0]
    return MatchReliability(
        language=answers.language,
        queries=len(p),
        shown=float(p.mean()),
        true=float(y.mean()),
        ece=calibration_error(calibration_bins(p.flatten(), y.flatten(), BINS)),
        brier=float((p - y).square().mean()),
        brier_constant=float((y.mean() - y).square().mean()),
        first=float(p[:, 0].mean()),
        first_true=float(y[:, 0].mean()),
        refused=float(refused.double().mean()),
        refused_right=float(refused[right].double().mean()),
        refused_without=float((wrong < line).double().mean()),
    )


def section(calibration: Calibration, found: Sequence[MatchReliability]) -> str:
    """Of the model card."""
    rows = "\n".join(
        f"| {r.language} | {r.queries} | {r.shown:.3f} | {r.true:.3f} | {r.ece:.3f} | {r.brier:.4f} | "
        f"{r.brier_constant:.4f} | {r.first:.2f} | {r.first_true:.2f} | {r.refused:.2f} | {r.refused_right:.2f} | "
        f"{r.refused_without:.2f} |"
        for r in found
    )
    head = [
        "language", "queries", "shown", "correct", "ECE", "Brier", "constant", "first hit", "correct",
        "refused", "refused though right", "refused without a match",
    ]  # fmt: skip
    return f"""{HEADING}

A text and an image match with probability sigmoid({calibration.scale:.2f} cos {calibration.bias:+.2f}), fitted to the
best {SHOWN} hits of {calibration.data}. Where even the best hit has less than {calibration.line:.0%}, a search says "no
good match". Measured on concepts it was not fitted to (two halves, each way): mean probability of the {SHOWN} images
shown and share of them that is correct; ECE, the mean distance of the two; Brier, the mean square, and that of always
saying the same; the first two of the first hit alone. Refused: queries that are told "no good match" though a correct
image is in the gallery; of those whose first hit is correct; and when the correct images are taken out.

| {" | ".join(head)} |
|{"---|" * len(head)}
{rows}

For a first hit the probability is too low where a correct image is known to be there: that it came first is evidence
too, and a cosine does not hold it. All this is about drawings like these, a few correct among hundreds.
"""
