"""Train, evaluate, predict and export from Python alone: run as a script, with a folder to work in as its argument."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

import vlm
from vlm.training import VitRecipe, evaluate, train

folder = Path(sys.argv[1])
rng = np.random.default_rng(0)
for name, level in (("dark", 60), ("bright", 190)):
    (folder / "photos" / name).mkdir(parents=True)
    for number in range(12):
        pixels = np.clip(rng.normal(level, 15, (24, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / name / f"{number}.png")
photos = folder / "photos"

recipe = VitRecipe.from_dict({
    "model": {"vision": {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}},
    "data": {"train": str(photos), "held_out": 6, "workers": 0},
    "optim": {"lr": 0.01, "warmup_steps": 2},
    "run": {"steps": 30, "batch_size": 6, "eval_every": 30, "save_every": 30},
})  # fmt: skip
assert train(recipe, folder / "run")
classifier = vlm.load_classifier(folder / "run")
assert evaluate(classifier, photos)["n"] == 24
top_1 = evaluate(classifier, photos)["balanced_accuracy"]["value"]
predicted = classifier.predict(sorted((photos / "dark").glob("*.png")), top=1)
vlm.export(classifier, folder / "out", "onnx")
fine = vlm.ViTClassifier.from_pretrained("mini", labels=["dark", "bright"])
print(vlm.__file__, round(top_1, 3), sum(row[0][0] == "dark" for row in predicted), len(fine.labels))
