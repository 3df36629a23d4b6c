import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vlm.index import near_duplicates
from vlm.index.near_duplicates import fold, group_near


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_BLOCK", 300)


def pairs(spectrum: float, seed: int = 0) -> np.ndarray:
    """float16 (1600, 48): each vector and a noisy copy; axis i has size i^-spectrum."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.arange(1, 49).float() ** -spectrum
    centres = torch.randn(800, 48, generator=generator) * sizes
    points = torch.cat([centres, centres + 0.15 * torch.randn(800, 48, generator=generator) * sizes])
    return F.normalize(points, dim=1).half().numpy()


def components(near: np.ndarray) -> np.ndarray:
    """By the definition: spread the smallest label along edges until nothing moves."""
    labels = np.arange(len(near))
    while True:
        spread = np.where(near, labels, len(labels)).min(1)
        if (spread == labels).all():
            return labels
        labels = spread


@pytest.mark.parametrize("spectrum", [0.0, 0.7])
@pytest.mark.parametrize("threshold", [0.98, 0.99])
def test_groups_are_the_components_of_the_graph_of_high_cosines(spectrum: float, threshold: float):
    vectors = pairs(spectrum)
    labels = group_near(vectors, threshold)
    exact = vectors.astype(np.float32)
    assert (labels == components(exact @ exact.T >= threshold)).all()
    assert 200 < len(set(labels)) < 1600


def test_a_long_chain_is_one_group_though_its_ends_are_far_apart():
    angles = torch.randperm(1000, generator=torch.Generator().manual_seed(0)) * (torch.pi / 1000)
    vectors = torch.stack([angles.cos(), angles.sin(), torch.zeros(1000)], 1).half().numpy()
    assert set(group_near(vectors, 0.998)) == {0}
    assert len(set(group_near(vectors[angles.numpy() % 0.2 < 0.1], 0.998))) > 10


@pytest.mark.parametrize("spectrum", [0.0, 0.7, 2.0])
def test_the_glance_never_sees_less_than_the_cosine(spectrum: float):
    vectors = pairs(spectrum, seed=1)
    folded = fold(vectors, 0.98)
    exact = torch.from_numpy(vectors).float()
    assert (folded @ folded.T >= exact @ exact.T - 1e-5).all()
    assert folded.shape[1] <= 49


def test_equal_vectors_are_one_group_and_none_are_none():
    assert set(group_near(np.full((700, 4), 0.5, np.float16), 0.99)) == {0}
    assert group_near(np.empty((0, 4), np.float16), 0.99).shape == (0,)
    assert group_near(np.full((1, 4), 0.5, np.float16), 0.99).tolist() == [0]
