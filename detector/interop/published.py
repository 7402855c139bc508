"""The detectors that torchvision, Detectron2 and MMDetection publish, by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from detector.config.inherit import SHIPPED

R101 = ("model.backbone.depth=101",)
X101_32X4D = (*R101, "model.backbone.groups=32", "model.backbone.width_per_group=4")
X101_64X4D = (*R101, "model.backbone.groups=64", "model.backbone.width_per_group=4")
CAFFE = (
    "model.preprocess.order=bgr", "model.preprocess.mean=[103.53,116.28,123.675]", "model.preprocess.std=[1.0,1.0,1.0]",
    "model.backbone.stride_in=1x1",
)  # fmt: skip
X101_32X8D = (  # FAIR's weights in Detectron2
    *R101, "model.backbone.groups=32", "model.backbone.width_per_group=8", "model.backbone.stride_in=3x3",
    "model.preprocess.std=[57.375,57.12,58.395]",
)  # fmt: skip
RFP = ("model.pyramid.type=recursive",)


@dataclass(frozen=True)
class Published:
    """A published file of weights, and the configuration of its model."""

    url: str
    compat: str
    """Name in detector://compat/."""
    sha256: str
    """How the SHA-256 of the file begins; "" where none is known."""
    overrides: tuple[str, ...] = ()
    """Changes to the configuration."""

    @property
    def file(self) -> str:
        """Name of the file."""
        return PurePosixPath(self.url).name

    @property
    def config(self) -> str:
        """The configuration, as `load_config` takes it."""
        return f"{SHIPPED}compat/{self.compat}.yaml"


def _torchvision(model: str, file: str) -> Published:
    return Published(f"https://download.pytorch.org/models/{file}.pth", f"torchvision_{model}", file.rpartition("-")[2])


def _detectron2(place: str, model: str, sha256: str = "", overrides: tuple[str, ...] = ()) -> Published:
    """The digits in its file names are no SHA-256; the two below were computed by others from the published files."""
    folders = {"cascade": "Misc", "mask": "COCO-InstanceSegmentation", "keypoint": "COCO-Keypoints",
               "pointrend": "PointRend/InstanceSegmentation"}  # fmt: skip
    folder = next((folder for word, folder in folders.items() if word in model), "COCO-Detection")
    url = f"https://dl.fbaipublicfiles.com/detectron2/{folder}/{place}.pkl"
    return Published(url, f"detectron2_{model}", sha256, overrides)


def _mmdetection(place: str, model: str, overrides: tuple[str, ...] = ()) -> Published:
    """The folder and the end of the file name, which between them have the name of the model twice; `publish_model.py` of
    MMDetection ends it with eight digits of the SHA-256."""
    folder, name, end = place.split()
    url = f"https://download.openmmlab.com/mmdetection/v2.0/{folder}/{name}/{name}{end}.pth"
    return Published(url, f"mmdetection_{model}", end.rpartition("-")[2], overrides)


_V1 = _torchvision("fasterrcnn_resnet50_fpn_coco_v1", "fasterrcnn_resnet50_fpn_coco-258fb6c6")
_TORCHVISION = {
    "fasterrcnn_resnet50_fpn": _V1,
    "fasterrcnn_resnet50_fpn_v1": _V1,
    "fasterrcnn_resnet50_fpn_v2": _torchvision(
        "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a"
    ),
    "maskrcnn_resnet50_fpn": _torchvision("maskrcnn_resnet50_fpn_coco_v1", "maskrcnn_resnet50_fpn_coco-bf2d0c1e"),
    "maskrcnn_resnet50_fpn_v2": _torchvision("maskrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn_v2_coco-73cbd019"),
    "keypointrcnn_resnet50_fpn": _torchvision(
        "keypointrcnn_resnet50_fpn_coco_v1", "keypointrcnn_resnet50_fpn_coco-fc266e95"
    ),
}
_KEYPOINTS, _POINTREND = "keypoint_rcnn_R_50_FPN", "pointrend_rcnn_R_50_FPN"
_DETECTRON2 = [
    _detectron2("faster_rcnn_R_50_C4_1x/137257644/model_final_721ade", "faster_rcnn_R_50_C4"),
    _detectron2("faster_rcnn_R_50_C4_3x/137849393/model_final_f97cb7", "faster_rcnn_R_50_C4"),
    _detectron2("faster_rcnn_R_50_DC5_1x/137847829/model_final_51d356", "faster_rcnn_R_50_DC5"),
    _detectron2("faster_rcnn_R_50_DC5_3x/137849425/model_final_68d202", "faster_rcnn_R_50_DC5"),
    _detectron2("faster_rcnn_R_50_FPN_1x/137257794/model_final_b275ba", "faster_rcnn_R_50_FPN"),
    _detectron2("faster_rcnn_R_50_FPN_3x/137849458/model_final_280758", "faster_rcnn_R_50_FPN", "3c25caca37baabbf"),
    _detectron2("faster_rcnn_R_101_C4_3x/138204752/model_final_298dad", "faster_rcnn_R_50_C4", overrides=R101),
    _detectron2("faster_rcnn_R_101_DC5_3x/138204841/model_final_3e0943", "faster_rcnn_R_50_DC5", overrides=R101),
    _detectron2("faster_rcnn_R_101_FPN_3x/137851257/model_final_f6e8b1", "faster_rcnn_R_101_FPN"),
    _detectron2(
        "faster_rcnn_X_101_32x8d_FPN_3x/139173657/model_final_68b088", "faster_rcnn_X_101_32x8d_FPN", "fe5ad56ff746aa55"
    ),
    _detectron2("mask_rcnn_R_50_C4_1x/137259246/model_final_9243eb", "mask_rcnn_R_50_C4"),
    _detectron2("mask_rcnn_R_50_C4_3x/137849525/model_final_4ce675", "mask_rcnn_R_50_C4"),
    _detectron2("mask_rcnn_R_50_DC5_1x/137260150/model_final_4f86c3", "mask_rcnn_R_50_DC5"),
    _detectron2("mask_rcnn_R_50_DC5_3x/137849551/model_final_84107b", "mask_rcnn_R_50_DC5"),
    _detectron2("mask_rcnn_R_50_FPN_1x/137260431/model_final_a54504", "mask_rcnn_R_50_FPN"),
    _detectron2("mask_rcnn_R_50_FPN_3x/137849600/model_final_f10217", "mask_rcnn_R_50_FPN"),
    _detectron2("mask_rcnn_R_101_C4_3x/138363239/model_final_a2914c", "mask_rcnn_R_50_C4", overrides=R101),
    _detectron2("mask_rcnn_R_101_DC5_3x/138363294/model_final_0464b7", "mask_rcnn_R_50_DC5", overrides=R101),
    _detectron2("mask_rcnn_R_101_FPN_3x/138205316/model_final_a3ec72", "mask_rcnn_R_50_FPN", overrides=R101),
    _detectron2("mask_rcnn_X_101_32x8d_FPN_3x/139653917/model_final_2d9806", "mask_rcnn_X_101_32x8d_FPN"),
    _detectron2("cascade_mask_rcnn_R_50_FPN_1x/138602847/model_final_e9d89b", "cascade_mask_rcnn_R_50_FPN"),
    _detectron2("cascade_mask_rcnn_R_50_FPN_3x/144998488/model_final_480dd8", "cascade_mask_rcnn_R_50_FPN"),
    _detectron2("keypoint_rcnn_R_50_FPN_1x/137261548/model_final_04e291", _KEYPOINTS),
    _detectron2("keypoint_rcnn_R_50_FPN_3x/137849621/model_final_a6e10b", _KEYPOINTS),
    _detectron2("keypoint_rcnn_R_101_FPN_3x/138363331/model_final_997cc7", _KEYPOINTS, overrides=R101),
    _detectron2("keypoint_rcnn_X_101_32x8d_FPN_3x/139686956/model_final_5ad38f", _KEYPOINTS, overrides=X101_32X8D),
    _detectron2("pointrend_rcnn_R_50_FPN_1x_coco/164254221/model_final_736f5a", _POINTREND),
    _detectron2("pointrend_rcnn_R_50_FPN_3x_coco/164955410/model_final_edd263", _POINTREND),
    _detectron2("pointrend_rcnn_R_101_FPN_3x_coco/28119983/model_final_3f4d2a", _POINTREND, overrides=R101),
    _detectron2("pointrend_rcnn_X_101_32x8d_FPN_3x_coco/28119989/model_final_ba17b9", _POINTREND, overrides=X101_32X8D),
]
_FASTER, _CASCADE, _LIBRA = "faster_rcnn_r50_fpn", "cascade_rcnn_r50_fpn", "libra_faster_rcnn_r50_fpn"
_MASK, _MASKS = "mask_rcnn_r50_fpn", "cascade_mask_rcnn_r50_fpn"
_HTC, _MASK_SCORING, _POINTS = "htc_r50_fpn", "ms_rcnn_r50_fpn", "point_rend_r50_caffe_fpn"
_MMDETECTION = [
    _mmdetection("faster_rcnn faster_rcnn_r50_fpn_1x_coco _20200130-047c8118", _FASTER),
    _mmdetection("faster_rcnn faster_rcnn_r50_fpn_2x_coco _bbox_mAP-0.384_20200504_210434-a5d8aa15", _FASTER),
    _mmdetection("faster_rcnn faster_rcnn_r50_fpn_mstrain_3x_coco _20210524_110822-e10bd31c", _FASTER),
    _mmdetection("faster_rcnn faster_rcnn_r101_fpn_1x_coco _20200130-f513f705", _FASTER, R101),
    _mmdetection("faster_rcnn faster_rcnn_r101_fpn_2x_coco _bbox_mAP-0.398_20200504_210455-1d2dac9c", _FASTER, R101),
    _mmdetection("faster_rcnn faster_rcnn_r101_fpn_mstrain_3x_coco _20210524_110822-4d4d2ca8", _FASTER, R101),
    _mmdetection("faster_rcnn faster_rcnn_x101_32x4d_fpn_1x_coco _20200203-cff10310", _FASTER, X101_32X4D),
    _mmdetection("faster_rcnn faster_rcnn_x101_32x4d_fpn_2x_coco _bbox_mAP-0.412_20200506_041400-64a12c0b", _FASTER, X101_32X4D),
    _mmdetection("faster_rcnn faster_rcnn_x101_64x4d_fpn_1x_coco _20200204-833ee192", _FASTER, X101_64X4D),
    _mmdetection("faster_rcnn faster_rcnn_x101_64x4d_fpn_2x_coco _20200512_161033-5961fa95", _FASTER, X101_64X4D),
    _mmdetection("cascade_rcnn cascade_rcnn_r50_fpn_1x_coco _20200316-3dc56deb", _CASCADE),
    _mmdetection("cascade_rcnn cascade_rcnn_r50_fpn_20e_coco _bbox_mAP-0.41_20200504_175131-e9872a90", _CASCADE),
    _mmdetection("cascade_rcnn cascade_rcnn_r101_fpn_1x_coco _20200317-0b6a2fbf", _CASCADE, R101),
    _mmdetection("cascade_rcnn cascade_rcnn_r101_fpn_20e_coco _bbox_mAP-0.425_20200504_231812-5057dcc5", _CASCADE, R101),
    _mmdetection("cascade_rcnn cascade_rcnn_x101_32x4d_fpn_1x_coco _20200316-95c2deb6", _CASCADE, X101_32X4D),
    _mmdetection("cascade_rcnn cascade_rcnn_x101_64x4d_fpn_1x_coco _20200515_075702-43ce6a30", _CASCADE, X101_64X4D),
    _mmdetection("pafpn faster_rcnn_r50_pafpn_1x_coco _bbox_mAP-0.375_20200503_105836-b7b4b9bd", "faster_rcnn_r50_pafpn"),
    _mmdetection("libra_rcnn libra_faster_rcnn_r50_fpn_1x_coco _20200130-3afee3a9", _LIBRA),
    _mmdetection("libra_rcnn libra_faster_rcnn_r101_fpn_1x_coco _20200203-8dba6a5a", _LIBRA, R101),
    _mmdetection("detectors cascade_rcnn_r50_rfp_1x_coco -8cf51bfd", "detectors_cascade_rcnn_r50_rfp"),
    _mmdetection("detectors cascade_rcnn_r50_sac_1x_coco -24bfda62", "detectors_cascade_rcnn_r50_sac"),
    _mmdetection("detectors detectors_cascade_rcnn_r50_1x_coco -32a10ba0", "detectors_cascade_rcnn_r50"),
    _mmdetection("mask_rcnn mask_rcnn_r50_fpn_1x_coco _20200205-d4b0c5d6", _MASK),
    _mmdetection("mask_rcnn mask_rcnn_r50_fpn_2x_coco _bbox_mAP-0.392__segm_mAP-0.354_20200505_003907-3e542a40", _MASK),
    _mmdetection("mask_rcnn mask_rcnn_r50_fpn_mstrain-poly_3x_coco _20210524_201154-21b550bb", _MASK),
    _mmdetection("mask_rcnn mask_rcnn_r101_fpn_1x_coco _20200204-1efe0ed5", _MASK, R101),
    _mmdetection("mask_rcnn mask_rcnn_r101_fpn_2x_coco _bbox_mAP-0.408__segm_mAP-0.366_20200505_071027-14b391c7", _MASK, R101),
    _mmdetection("mask_rcnn mask_rcnn_r101_fpn_mstrain-poly_3x_coco _20210524_200244-5675c317", _MASK, R101),
    _mmdetection("mask_rcnn mask_rcnn_x101_32x4d_fpn_1x_coco _20200205-478d0b67", _MASK, X101_32X4D),
    _mmdetection("mask_rcnn mask_rcnn_x101_64x4d_fpn_1x_coco _20200201-9352eb0d", _MASK, X101_64X4D),
    _mmdetection("cascade_rcnn cascade_mask_rcnn_r50_fpn_1x_coco _20200203-9d4dcb24", _MASKS),
    _mmdetection(
        "cascade_rcnn cascade_mask_rcnn_r50_fpn_20e_coco _bbox_mAP-0.419__segm_mAP-0.365_20200504_174711-4af8e66e", _MASKS
    ),
    _mmdetection("cascade_rcnn cascade_mask_rcnn_r101_fpn_1x_coco _20200203-befdf6ee", _MASKS, R101),
    _mmdetection("cascade_rcnn cascade_mask_rcnn_x101_32x4d_fpn_1x_coco _20200201-0f411b1f", _MASKS, X101_32X4D),
    _mmdetection("cascade_rcnn cascade_mask_rcnn_x101_64x4d_fpn_1x_coco _20200203-9a2db89d", _MASKS, X101_64X4D),
    _mmdetection("htc htc_r50_fpn_1x_coco _20200317-7332cf16", _HTC),
    _mmdetection("htc htc_r50_fpn_20e_coco _20200319-fe28c577", _HTC),
    _mmdetection("htc htc_r101_fpn_20e_coco _20200317-9b41b48f", _HTC, R101),
    _mmdetection("htc htc_x101_32x4d_fpn_16x1_20e_coco _20200318-de97ae01", _HTC, X101_32X4D),
    _mmdetection("htc htc_x101_64x4d_fpn_16x1_20e_coco _20200318-b181fd7a", _HTC, X101_64X4D),
    _mmdetection("detectors htc_r50_rfp_1x_coco -8ff87c51", _HTC, (*RFP, "model.backbone.conv=aws")),
    _mmdetection("detectors htc_r50_sac_1x_coco -bfa60c54", _HTC, ("model.backbone.conv=deformable_sac",)),
    _mmdetection("detectors detectors_htc_r50_1x_coco -329b1453", _HTC, (*RFP, "model.backbone.conv=deformable_sac")),
    _mmdetection("ms_rcnn ms_rcnn_r50_caffe_fpn_1x_coco _20200702_180848-61c9355e", _MASK_SCORING, CAFFE),
    _mmdetection(
        "ms_rcnn ms_rcnn_r50_caffe_fpn_2x_coco _bbox_mAP-0.388__segm_mAP-0.363_20200506_004738-ee87b137", _MASK_SCORING, CAFFE
    ),
    _mmdetection(
        "ms_rcnn ms_rcnn_r101_caffe_fpn_1x_coco _bbox_mAP-0.404__segm_mAP-0.376_20200506_004755-b9b12a37",
        _MASK_SCORING, (*R101, *CAFFE),
    ),
    _mmdetection(
        "ms_rcnn ms_rcnn_r101_caffe_fpn_2x_coco _bbox_mAP-0.411__segm_mAP-0.381_20200506_011134-5f3cc74f",
        _MASK_SCORING, (*R101, *CAFFE),
    ),
    _mmdetection("ms_rcnn ms_rcnn_x101_32x4d_fpn_1x_coco _20200206-81fd1740", _MASK_SCORING, X101_32X4D),
    _mmdetection("ms_rcnn ms_rcnn_x101_64x4d_fpn_1x_coco _20200206-86ba88d2", _MASK_SCORING, X101_64X4D),
    _mmdetection("ms_rcnn ms_rcnn_x101_64x4d_fpn_2x_coco _20200308-02a445e2", _MASK_SCORING, X101_64X4D),
    _mmdetection("point_rend point_rend_r50_caffe_fpn_mstrain_1x_coco -1bcb5fb4", _POINTS),
    _mmdetection("point_rend point_rend_r50_caffe_fpn_mstrain_3x_coco -e0ebb6b7", _POINTS),
]  # fmt: skip


def _by_name() -> dict[str, Published]:
    """All of them as "framework/model". Detectron2's folders and MMDetection's have the models' names."""
    named = {f"torchvision/{name}": model for name, model in _TORCHVISION.items()}
    named |= {f"detectron2/{model.url.split('/')[-3]}": model for model in _DETECTRON2}
    return named | {f"mmdetection/{model.url.split('/')[-2]}": model for model in _MMDETECTION}


PUBLISHED = _by_name()
