"""The bundled model's recipe gives the batches it was trained on, whatever happens to defaults and data code."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from vlm.training.engine.distributed import SINGLE_PROCESS
from vlm.training.recipe.reading import read_recipe
from vlm.training.tasks.contrastive import open_embedder, open_pairs_of, open_stream

ROOT = Path(__file__).parents[3]
# sha256 of images, ids and sample names of steps 0, 1 and the first dense one, computed by the code that trained mini
BEFORE = "299f9bc725a578e5883c30b6dfa9aa7f9d73aac50979311e8f19ed1af11fde39"


@pytest.mark.parametrize("path", ["tests/fixtures/mini.toml", "training/recipes/mini-picture-words.toml"])
def test_minis_batches_are_those_it_was_trained_on(path: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    recipe = read_recipe(Path(path))
    recipe = replace(recipe, data=replace(recipe.data, cache="none"))
    embedder = open_embedder(recipe, SINGLE_PROCESS)
    pairs = open_pairs_of(recipe, embedder)[0]
    stream, digest = open_stream(recipe, embedder, pairs, SINGLE_PROCESS), hashlib.sha256()
    for step in (0, 1, recipe.dense_from):
        batch = stream[step]
        for part in (batch.images, batch.ids):
            digest.update(str((str(part.dtype), tuple(part.shape))).encode())
            digest.update(part.numpy().tobytes())
        digest.update("\n".join(batch.uids).encode())
    assert digest.hexdigest() == BEFORE
