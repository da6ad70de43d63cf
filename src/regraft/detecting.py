"""Faster R-CNN's head: a pyramid over the maps, proposals, and a box head; each picture's loss depends on that picture and its seed alone.

torchvision's parts (Ren et al. 2015, Faster R-CNN; Lin et al. 2017, Feature Pyramid Networks). Convolutions and linear layers run on the
whole batch; what is drawn, and what is averaged, is of one picture.

Shapes: b pictures, L maps [b, c, h, w], the finest first, a anchors in all, p proposals of a picture, k classes and the background.
Boxes inside are in units of 1 / CELL of the finest map's cells; outside they are parts 0..1 of the picture's width and height.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from regraft.streams import generator

Shape = tuple[int, int, int]
MOST = 100  # boxes that are found in a picture at most
CELL = 32  # units of length in a cell of the finest map: anchors are rounded to whole ones
POOLED = 7  # cells of a pooled region's side
GROUPS = 8  # of channels that are normalised together: BatchNorm would make a picture's loss depend on the others


class Drawn:
    """So many positives and negatives of each picture, in place of torchvision's sampler: drawn from the picture's own seed."""

    def __init__(self, count: int, positive: float, purpose: str) -> None:
        """`positive`: the most of them that are positives, 0..1; `purpose` keeps the streams of two samplers apart."""
        self.count, self.most, self.purpose = count, int(count * positive), purpose
        self.seeds: list[int] = []  # of the pictures that come next

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Each picture's labels (1 or more: positive, 0: negative, -1: neither) -> two masks: chosen positives, chosen negatives."""
        chosen: tuple[list[Tensor], list[Tensor]] = ([], [])
        for seed, each in zip(self.seeds, labels, strict=True):
            draws = generator(seed, self.purpose)
            positives = min(self.most, int((each >= 1).sum()))
            for masks, among, count in zip(chosen, (each >= 1, each == 0), (positives, self.count - positives), strict=True):
                places = among.nonzero().flatten()
                order = torch.randperm(len(places), generator=draws)[:count].to(places.device)
                mask = torch.zeros_like(each, dtype=torch.uint8)
                mask[places[order]] = 1
                masks.append(mask)
        return chosen


class Detector(nn.Module):
    """Maps -> [b, MOST, 6]: x0, y0, x1, y1 as parts of the picture, the score (0: no box), the class; the surest first."""

    def __init__(
        self,
        leaves: Sequence[Shape],
        classes: int,
        *,
        width: int,
        hidden: int,
        anchors: Sequence[float],
        ratios: Sequence[float],
        proposals: int,
        drawn_anchors: int,
        drawn_regions: int,
        score: float,
        overlap: float,
    ) -> None:
        """`leaves`: the maps' shapes, the finest first, each a whole part as high and wide as the first. `anchors`: sides in cells of each
        map; `ratios`: heights over widths. Draws from torch's global stream, which the caller seeds."""
        super().__init__()
        self.leaves = tuple(leaves)
        _, height, wide = self.leaves[0]
        self.extent = (height * CELL, wide * CELL)
        names = [str(level) for level in range(len(leaves))]
        sizes = tuple(tuple(side * CELL * (height // shape[1]) for side in anchors) for shape in leaves)
        self.pyramid = FeaturePyramidNetwork([shape[0] for shape in leaves], width, norm_layer=partial(nn.GroupNorm, GROUPS))
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(sizes, (tuple(ratios),) * len(sizes)),
            RPNHead(width, len(anchors) * len(ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=drawn_anchors,
            positive_fraction=0.5,
            pre_nms_top_n={"training": 4 * proposals, "testing": 4 * proposals},
            post_nms_top_n={"training": proposals, "testing": proposals},
            nms_thresh=0.7,
        )
        # a region goes to the map whose anchors are nearest to its size (Lin et al. 2017, equation 1)
        middle = sizes[0][len(anchors) // 2] / 2**0.5
        self.roi = RoIHeads(
            MultiScaleRoIAlign(names, POOLED, sampling_ratio=2, canonical_scale=middle, canonical_level=CELL.bit_length() - 1),  # type: ignore[arg-type]
            TwoMLPHead(width * POOLED**2, hidden),
            FastRCNNPredictor(hidden, classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=drawn_regions,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=score,
            nms_thresh=overlap,
            detections_per_img=MOST,
        )
        self.rpn.fg_bg_sampler = Drawn(drawn_anchors, 0.5, "anchors")
        self.roi.fg_bg_sampler = Drawn(drawn_regions, 0.25, "regions")

    def forward(self, x: Tensor) -> Tensor:
        """What leaves the backbone -> what is found, [b, MOST, 6]"""
        maps, objectness, deltas, anchors = self._asked(x)
        proposals = self._proposals(objectness, deltas, anchors)
        logits, moves = self._told(maps, proposals)
        found = self.roi.postprocess_detections(logits, moves, proposals, self._extents(len(x)))
        scale = x.new_tensor(self.extent[::-1] * 2, dtype=torch.float32)
        rows = [torch.cat([boxes / scale, scores[:, None], labels[:, None] - 1], 1) for boxes, scores, labels in zip(*found, strict=True)]
        return torch.stack([nn.functional.pad(each, (0, 0, 0, MOST - len(each))) for each in rows])

    def losses(self, x: Tensor, truth: Tensor, seeds: Tensor) -> Tensor:
        """What leaves the backbone, boxes [b, M, 5] (class or -1, x0, y0, x1, y1 in parts), a seed for each picture [b] -> losses [b].

        The sum of four (Ren et al. 2015, equation 1; Girshick 2015, equation 1): whether an anchor holds an object, how far it is from it,
        which class a region is of, and how far it is from its object.
        """
        self.rpn.fg_bg_sampler.seeds = self.roi.fg_bg_sampler.seeds = seeds.tolist()
        maps, objectness, deltas, anchors = self._asked(x)
        targets = [self._target(each) for each in truth]
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        wanted = self.rpn.box_coder.encode(list(matched), anchors)
        positive, negative = self.rpn.fg_bg_sampler(labels)

        regions = self._proposals(objectness, deltas, anchors)
        regions, _, kinds, away = self.roi.select_training_samples(regions, targets)
        counts = [len(each) for each in regions]
        logits, moves = self._told(maps, regions)
        parts = zip(logits.split(counts), moves.split(counts), kinds, away, strict=True)

        losses = []
        for i, (logit, move, kind, far) in enumerate(parts):
            near, chosen = positive[i].bool(), (positive[i] | negative[i]).bool()
            there = nn.functional.binary_cross_entropy_with_logits(objectness[i][chosen], labels[i][chosen])
            off = nn.functional.smooth_l1_loss(deltas[i][near], wanted[i][near], beta=1 / 9, reduction="sum") / chosen.sum()
            which, place = fastrcnn_loss(logit, move, [kind], [far])
            losses.append(there + off + which + place)
        return torch.stack(losses)

    def _asked(self, x: Tensor) -> tuple[OrderedDict[str, Tensor], Tensor, Tensor, list[Tensor]]:
        """The pyramid's maps, each anchor's logit [b, a] and move [b, a, 4], and the anchors [a, 4], once for each picture"""
        maps = self.pyramid(OrderedDict((str(level), each) for level, each in enumerate(self._maps(x))))
        objectness, deltas = concat_box_prediction_layers(*self.rpn.head(list(maps.values())))
        pictures = ImageList(x.new_empty(0, *self.extent), self._extents(len(x)))
        anchors = self.rpn.anchor_generator(pictures, [each.float() for each in maps.values()])
        return maps, objectness.float().reshape(len(x), -1), deltas.float().reshape(len(x), -1, 4), anchors

    def _maps(self, x: Tensor) -> list[Tensor]:
        """[b, c, h, w], or several packed flat with the coarsest in front, [b, n] -> the maps, the finest first"""
        if x.ndim == 4:
            return [x]
        backwards = self.leaves[::-1]
        parts = x.split([c * h * w for c, h, w in backwards], dim=1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, backwards, strict=True)][::-1]

    def _proposals(self, objectness: Tensor, deltas: Tensor, anchors: list[Tensor]) -> list[Tensor]:
        """[p, 4] for each picture; no gradient goes through where they are"""
        boxes = self.rpn.box_coder.decode(deltas.detach().reshape(-1, 4), anchors).reshape(len(anchors), -1, 4)
        each = len(self.rpn.anchor_generator.cell_anchors[0])
        counts = [h * w * each for _, h, w in self.leaves]
        return self.rpn.filter_proposals(boxes, objectness, self._extents(len(anchors)), counts)[0]

    def _told(self, maps: OrderedDict[str, Tensor], regions: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Regions [r, 4] of each picture -> class logits [all r, k + 1] and moves [all r, 4 (k + 1)]"""
        floats = OrderedDict((name, each.float()) for name, each in maps.items())
        logits, moves = self.roi.box_predictor(self.roi.box_head(self.roi.box_roi_pool(floats, regions, self._extents(len(regions)))))
        return logits.float(), moves.float()

    def _target(self, truth: Tensor) -> dict[str, Tensor]:
        """[M, 5] -> the boxes that are there and their labels, counted from 1: 0 is the background"""
        there = truth[truth[:, 0] >= 0]
        return {"boxes": there[:, 1:] * there.new_tensor(self.extent[::-1] * 2), "labels": there[:, 0].long() + 1}

    def _extents(self, count: int) -> list[tuple[int, int]]:
        return [self.extent] * count
