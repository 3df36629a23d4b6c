"""Nothing in a training step waits for the device, between two steps that are logged."""

import pytest

from benchmarks.synchronisations import LOG_EVERY, encoders, steps


def test_neither_encoder_waits_for_the_device():
    assert [(found.total(), meta) for found, meta in encoders().values()] == [(0, "runs")] * 5


@pytest.mark.parametrize(("precision", "matrices"), [("float32", "muon"), ("bfloat16", "adamw"), ("float16", "muon")])
def test_a_step_waits_for_the_device_only_when_it_is_logged(precision, matrices):
    found = steps(precision, matrices)
    assert found[: LOG_EVERY - 1] == [0] * (LOG_EVERY - 1)
    assert found[LOG_EVERY - 1] == 1  # the instrument sees the one read
