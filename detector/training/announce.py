"""What a training says before its first step: data, model, recipe."""

from __future__ import annotations

import logging

from detector import distributed
from detector.data.describe import class_table_of, report_of
from detector.device import describe_device
from detector.evaluation.reach import scoring_limits
from detector.training.doubts import doubts_about
from detector.training.loop import Trainer
from detector.training.plan import plan_faults, plan_lines

log = logging.getLogger("detector")


def announce(trainer: Trainer, started: str | None) -> None:
    """Log the data, the model and the recipe."""
    recipe, model = trainer.recipe, trainer.train_step.model
    log.info("train %s", report_of(trainer.train_set))
    log.info("val   %s", report_of(trainer.val_set))
    if distributed.is_rank0():
        file, ids, fields = (
            trainer.val_set.annotation_file,
            trainer.val_set.category_ids,
            trainer.config.model.target_fields,
        )
        for line in scoring_limits(file, ids, trainer.config.evaluate, fields):
            log.warning("val: %s", line)
        data = trainer.config.needed_data()
        for line in doubts_about(trainer.train_set, model, data.resize, data.tiles):
            log.warning("train: %s", line)
    log.info("%s", class_table_of(trainer.train_set))
    tiles = trainer.config.needed_data().tiles
    if tiles is not None:
        log.info("each epoch is scored in %s: `--tiles` of evaluate and infer does the same", tiles.of_evaluation())
    count = sum(p.numel() for p in model.parameters())
    world = distributed.world_size()
    device = trainer.device if world == 1 else f"{world} processes, {trainer.device.type}"
    log.info("model: %.1f M parameters on %s, %s", count / 1e6, device, trainer.train_step.precision)
    log.info("machine: %s", describe_device(trainer.device))
    rule = f"scaled from {recipe.lr:g} for {recipe.lr_batch}" if recipe.optimizer == "sgd" else "as given, not scaled"
    log.info(
        "%s, %d images a step, learning rate %.4g (%s), %d steps in %d epochs",
        recipe.optimizer, recipe.batch_size, recipe.scaled_lr(), rule, trainer.steps, recipe.epochs,
    )  # fmt: skip
    log.info("learning rate: %s", "; ".join(plan_lines(recipe, trainer.steps_per_epoch)))
    for fault in plan_faults(recipe, trainer.steps_per_epoch):
        log.warning("%s", fault)
    if model.reports_proposals:
        log.info(
            "an RPN alone: best.pth is chosen by the %s of proposals; AP is that of all classes as one",
            trainer.criterion,
        )
    elif trainer.criterion != "AP":
        log.info("best.pth is chosen by %s", trainer.criterion)
    if started:
        log.info("%s", started)
