"""The second stage: classify and refine proposals (Girshick 2015, Fast R-CNN, arXiv 1504.08083)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from detector.modeling.boxes import BoxCoder
from detector.modeling.matching import Matching
from detector.modeling.padded import Padded
from detector.modeling.roi_heads.keypoint_head import KeypointBranch
from detector.modeling.roi_heads.mask_branch import MaskBranch
from detector.modeling.roi_heads.selection import DetectionSelection
from detector.modeling.roi_heads.stage import RegionLoss, Regions, Stage, boxes_of, positive_rows, positives, to_rois
from detector.modeling.sampling import Sampling
from detector.records.geometry import Size
from detector.structures import Batch, Detections, Proposals, Target


class RoIHead(nn.Module):
    """Proposals -> detections, in one stage.

    Args:
        pool: levels and regions -> pooled regions.
        box_head: pooled regions -> vectors.
        num_classes: K, without background.
        class_agnostic: one set of deltas for all classes instead of one for each.
        matching: which regions are positive.
        sampling: how many regions of an image are learnt from.
        coder: how deltas describe a box relative to its region.
        loss: of classes and deltas.
        selection: which classified regions become detections.
        mask: the branch that gives every detection a mask; None: no masks.
        keypoint: the branch that gives every detection keypoints; None: none.
        train_on_predicted_boxes: masks and keypoints learn from the positive regions where the box head moves them
            (PointRend in Detectron2), not from the proposals.
    """

    reports_proposals = False

    def __init__(
        self,
        pool: nn.Module,
        box_head: nn.Module,
        num_classes: int,
        *,
        class_agnostic: bool = False,
        matching: Matching = Matching(pos_iou=0.5),
        sampling: Sampling = Sampling(batch_per_image=512, positive_fraction=0.25),
        coder: BoxCoder = BoxCoder(weights=(10, 10, 5, 5)),
        loss: RegionLoss = RegionLoss(),
        selection: DetectionSelection = DetectionSelection(),
        mask: MaskBranch | None = None,
        keypoint: KeypointBranch | None = None,
        train_on_predicted_boxes: bool = False,
    ):
        super().__init__()
        self.stage = Stage(
            box_head,
            num_classes,
            class_agnostic=class_agnostic,
            matching=matching,
            sampling=sampling,
            coder=coder,
            loss=loss,
        )
        self.pool, self.num_classes, self.selection = pool, num_classes, selection
        self.mask, self.keypoint = mask, keypoint
        if train_on_predicted_boxes and mask is not None and mask.pool is None:
            raise ValueError(
                "train_on_predicted_boxes: the mask head reads what the box head has made of the proposals; leave it out"
            )
        self.train_on_predicted_boxes = train_on_predicted_boxes

    def losses(
        self, p: list[Tensor], proposals: list[Proposals], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """{"roi_class", "roi_box"}, divided by the number of sampled regions, and "roi_mask", "roi_keypoint" of the branches."""
        regions = self.stage.sample(boxes_of(proposals), targets)
        return self.losses_of(p, regions, batch, targets)

    def losses_of(
        self, p: list[Tensor], regions: list[Regions], batch: Batch, targets: list[Target]
    ) -> dict[str, Tensor]:
        """The losses of the sampled regions of every image."""
        logits, deltas, maps = self._outputs(p, [r.boxes for r in regions])
        class_loss, box_loss = self.stage.losses(logits, deltas, regions, targets)
        losses = {"roi_class": class_loss, "roi_box": box_loss}
        moved = self.train_on_predicted_boxes
        of_objects = self.stage.moved(deltas, regions) if moved else positives(regions, self.num_classes)
        if self.mask is not None:
            if maps is None:
                if self.mask.alone:
                    of_objects = positives(of_objects, self.num_classes, alone=True)
                x = self.mask.read(p, [r.boxes for r in of_objects])
            else:
                x = maps[positive_rows(regions, self.num_classes)]
            losses |= self.mask.losses(x, of_objects, batch, targets)
        return losses if self.keypoint is None else losses | self.keypoint.losses(p, of_objects, targets)

    def detect(self, p: list[Tensor], proposals: Sequence[Proposals], batch: Batch) -> list[Detections]:
        """The final boxes of every image, best first, with what the branches find in them."""
        return self.complete(p, list(self.find(p, Padded.of(proposals), batch)), batch)

    def find(self, p: list[Tensor], proposals: Padded[Proposals], batch: Batch) -> Padded[Detections]:
        """The final boxes of every image, best first; the shapes depend on those of the arguments alone."""
        [(_, logits, deltas)] = self.run(p, list(proposals.rows.boxes), batch.sizes)
        return self.postprocess(logits, deltas, proposals, batch.sizes)

    def run(self, p: list[Tensor], boxes: list[Tensor], sizes: list[Size]) -> list[tuple[list[Tensor], Tensor, Tensor]]:
        """Of the only stage, its input boxes (R_i, 4) of every image, its logits (R, K+1) and its deltas (R, K or 1, 4)."""
        return [(boxes, *self.stage(self.pool(p, to_rois(boxes))))]

    def scores(self, outputs: Sequence[Tensor]) -> Tensor:
        """The class scores (R, K) of the regions whose logits (R, K+1) are those of `run`."""
        [logits] = outputs
        return logits.softmax(dim=1)[:, :-1]

    def complete(self, p: list[Tensor], found: list[Detections], batch: Batch) -> list[Detections]:
        """The detections of every image, whose boxes are final, with their masks and keypoints where there are branches."""
        found = self.masked(p, found, batch)
        return found if self.keypoint is None else self.keypoint.detect(p, found)

    def masked(self, p: list[Tensor], found: list[Detections], batch: Batch) -> list[Detections]:
        """The detections of every image, whose boxes are final, with their masks if there is a mask branch."""
        if self.mask is None:
            return found
        boxes = [d.boxes for d in found]
        own = self.mask.pool is not None
        x = self.mask.read(p, boxes) if own else self.stage.box_head.maps(self.pool(p, to_rois(boxes)))
        return self.mask.detect(x, found, batch)

    def _outputs(self, p: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Class logits and deltas of the regions of all images; and the box head's maps if a branch reads them, too (C4)."""
        pooled = self.pool(p, to_rois(boxes))
        if self.mask is None or self.mask.pool is not None:
            return *self.stage(pooled), None
        maps = self.stage.box_head.maps(pooled)
        return *self.stage.predict(self.stage.box_head.mean(maps)), maps

    def postprocess(
        self, logits: Tensor, deltas: Tensor, proposals: Padded[Proposals], sizes: Sequence[Size]
    ) -> Padded[Detections]:
        """Logits (N*R, K+1) and deltas (N*R, K or 1, 4) of the proposals of all images -> detections of every image."""
        scores, boxes = self.scores([logits]), proposals.rows.boxes
        return select(scores, deltas, boxes, proposals.valid, sizes, self.stage.coder, self.selection)

    def merge(self, views: Sequence[Detections], proposals: Proposals) -> Detections:
        """The detections of several views of one image as those of one (test-time augmentation)."""
        return self.selection.merge(views)


def select(
    scores: Tensor,
    deltas: Tensor,
    boxes: Tensor,
    valid: Tensor,
    sizes: Sequence[Size],
    coder: BoxCoder,
    selection: DetectionSelection,
) -> Padded[Detections]:
    """`selection` for scores (N*R, K) and deltas (N*R, K or 1, 4) of the boxes (N, R, 4) of all images."""
    scores, deltas = (x.unflatten(0, valid.shape) for x in (scores, deltas))
    return selection(scores, deltas, boxes, valid, coder, sizes)
