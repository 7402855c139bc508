"""Training in 60 lines on the public API: a Faster R-CNN on drawn shapes, with its log, its scores and a picture.

    python examples/minimal_train.py FOLDER

`detector train` does the same with resume, several processes, moving averages and the rest.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import detector
from detector.data.loader import train_loader
from detector.data.settings import build_dataset
from detector.data.synthetic.drawn_set import draw_set
from detector.evaluation.run import evaluate_predictor
from detector.inference.predictor import Predictor

SETTINGS = ["data.workers=0", "data.keep_empty=false"]


def train(folder: Path, *, images: int = 160, epochs: int = 4) -> dict[str, float]:
    """Draws a data set, trains on it, and returns COCO's numbers; the picture is FOLDER/found.png."""
    print(draw_set(folder / "shapes", train=images, val=16, size=(192, 160), seed=0))
    config = detector.load_config("detector://shapes_r18_fpn.yaml", [*SETTINGS, f"data.root={folder / 'shapes'}"])
    train_set = build_dataset(config.data, "train", fields=config.model.target_fields)
    val_set = build_dataset(config.data, "val", class_names=train_set.class_names)
    torch.manual_seed(0)
    model = detector.build_detector(config.with_num_classes(len(train_set.class_names)))
    loader = train_loader(train_set, batch_size=8, workers=0, seed=0)
    steps = epochs * len(loader.batch_sampler)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)

    model.train()
    for epoch in range(epochs):
        loader.batch_sampler.set_epoch(epoch)
        for batch, targets, _ in loader:
            losses = model(batch, targets)  # {"rpn_objectness", "rpn_box", "roi_class", "roi_box"}
            optimizer.zero_grad()
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}/{epochs}  " + "  ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))

    predictor = Predictor(model, config, train_set.class_names, train_set.category_ids)
    metrics, _ = evaluate_predictor(predictor, val_set, workers=0, progress=False)
    image = val_set.image(0)
    predictor(image).filter(0.3).plot(image).save(folder / "found.png")
    print("  ".join(f"{name} {metrics['bbox'][name]:.3f}" for name in ("AP", "AP50", "AP75")))
    return metrics["bbox"]


if __name__ == "__main__":
    train(Path(sys.argv[1]))
