import unicodedata

import pytest

import vlm
from tests.support.messages import refused
from vlm.errors import InputError


@pytest.mark.parametrize(
    ("labels", "twice"),
    [(["crane", "dog", "crane"], "crane"), (["é", unicodedata.normalize("NFD", "é")], "é"), (["a", "A"], "")],
)
def test_a_new_head_has_one_class_of_each_name(labels: list[str], twice: str):
    if twice:
        with refused(InputError, twice, "one name"):
            vlm.ViTClassifier.from_pretrained("mini", labels=labels)
    else:
        assert vlm.ViTClassifier.from_pretrained("mini", labels=labels).labels == tuple(labels)
