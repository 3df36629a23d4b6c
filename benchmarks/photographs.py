"""Made-up photographs for measurements: JPEG files of 2000 x 1500 with the spectrum and the noise of real ones."""

import io

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 2000, 1500
DETAIL = (1.6, 1.5, 1.4, 1.3)  # amplitude ~ 1 / frequency ** this; natural scenes have 1.0 to 1.6 before a lens


def photograph(seed: int, detail: float | None = None) -> bytes:
    """A JPEG file of quality 90, 4:2:0, 390 to 850 KiB by its `detail`."""
    rng = np.random.default_rng(seed)
    slope = DETAIL[seed % len(DETAIL)] if detail is None else detail
    down, across = np.fft.fftfreq(HEIGHT)[:, None] * HEIGHT, np.fft.rfftfreq(WIDTH)[None] * WIDTH
    frequency = np.hypot(down, across)
    frequency[0, 0] = 1
    brightness = _scene(rng, frequency, slope)
    levels = [120 + 45 * brightness + 20 * _scene(rng, frequency, slope + 0.5) for _ in range(3)]
    noisy = np.stack(levels, axis=-1) + rng.normal(0, 1.5, (HEIGHT, WIDTH, 3))
    return as_jpeg(Image.fromarray(noisy.clip(0, 255).round().astype(np.uint8)))


def as_jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def _scene(rng: np.random.Generator, frequency: np.ndarray, slope: float) -> np.ndarray:
    """Random phases: (HEIGHT, WIDTH), mean 0, standard deviation 1."""
    waves = np.exp(2j * np.pi * rng.random(frequency.shape)) * frequency**-slope
    waves[0, 0] = 0
    levels = np.fft.irfft2(waves, s=(HEIGHT, WIDTH))
    return levels / levels.std()
