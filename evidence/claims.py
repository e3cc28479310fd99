"""The claims as data: a sentence of the paper, variants of one model, and who should be better than whom.

A variant is what changes; all else is the one recipe of each data set (evidence/data.py). The transformer has four
blocks, and so at most four global stages, where the paper's have twelve or more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evidence.data import Kind

# the image transformer of the demo, the same architecture with random weights, or pre-trained for less long in one way;
# merged: the whole model, trained on several sets at once; vit_tiny: another transformer, that of `train`
Start = Literal["stills", "scratch", "supervised", "contrastive", "masked", "merged", "vit_tiny"]
Transformer = Literal["stills", "vit_tiny"]  # whose architecture it is
Architecture = Literal["divided attention", "joint attention"]  # evidence/baselines.py

TEMPORAL: dict[str, Any] = {"layout": "temporal"}
IMAGE_ONLY: dict[str, Any] = {"layout": "scene", "global_after": ()}
HALVED: dict[str, Any] = IMAGE_ONLY | {"temporal_downsample": True}  # what else the temporal layout has, left out


@dataclass(frozen=True)
class Variant:
    """One row of a claim's tables."""

    name: str
    model: Mapping[str, Any] = field(default_factory=lambda: TEMPORAL)  # options of `uniformerv2.arm`
    start: Start = "stills"
    # None: UniFormerV2; others get frames that cost what the temporal layout does
    architecture: Architecture | None = None
    probe: Mapping[str, Any] | None = None  # fields of `ProbeRecipe`: a probe of the frozen model; None: it is trained
    reverses: bool = False  # half of the training clips are played backwards, where that makes a clip of another class
    own: str = ""  # a recipe for data of one's own, in place of the data set's
    transformer: Transformer = "stills"
    recipe: Mapping[str, Any] = field(default_factory=dict)  # fields of `Recipe` that differ from the data set's


@dataclass(frozen=True)
class Expectation:
    """What the claim says of two variants on data of a kind: `better` - `worse` lies above -margin."""

    better: str
    worse: str
    kind: Kind
    margin: float = 0.0  # above 0: better is at least no worse than this


@dataclass(frozen=True)
class Claim:
    """What is tested, and how."""

    name: str
    sentence: str  # of the paper, in our words
    section: str  # of the paper
    variants: tuple[Variant, ...]
    reference: str  # the variant that all others are compared with
    expected: tuple[Expectation, ...]
    kinds: tuple[Kind, ...] = ("motion", "appearance", "unknown")  # of the data that it is tried on
    without: tuple[str, ...] = ()  # data sets that it is not tried on
    on_request: bool = False  # run where it is named alone: its cells take a core a quarter of an hour and more

    def __post_init__(self) -> None:
        names = {variant.name for variant in self.rows}
        used = {self.reference, *(name for one in self.expected for name in (one.better, one.worse))}
        if used - names:
            raise ValueError(f"claim {self.name}: no variant {', '.join(sorted(used - names))}")

    @property
    def rows(self) -> tuple[Variant, ...]:
        """The variants, then the controls that are not among them."""
        names = {variant.name for variant in self.variants}
        return self.variants + tuple(control for control in CONTROLS if control.name not in names)


CONTROLS = (  # beside every table: what no order of frames tells, and what the image weights bring
    Variant("image only", IMAGE_ONLY),
    Variant("from scratch", start="scratch"),
)
MARGIN = 0.03  # three points: the price in accuracy at which a cheaper model still counts as good enough


def _temporal(name: str, **changes: Any) -> Variant:
    return Variant(name, TEMPORAL | changes)


def _expect(
    better: str, *others: str, on: tuple[Kind, ...] = ("motion", "appearance"), margin: float = 0.0
) -> tuple[Expectation, ...]:
    return tuple(Expectation(better, other, kind, margin) for other in others for kind in on)


MOTION: tuple[Kind, ...] = ("motion",)
# five trainings a seed for 139 videos: it judges the claims on order, and leaves details to larger sets
TOO_FEW_VIDEOS = ("room_transitions",)

LAYOUTS = Claim(
    "layouts",
    "Motion needs local UniBlocks, temporal downsampling and many global stages; scenes need late global stages alone.",
    "4",
    (
        _temporal("temporal"),
        Variant("scene", {"layout": "scene"}),
        _temporal("temporal, all frames kept", temporal_downsample=False),
        *CONTROLS,
    ),
    "temporal",
    (
        *_expect("temporal", "scene", "image only", on=MOTION),
        *_expect("temporal", "temporal, all frames kept", on=MOTION, margin=MARGIN),
        *_expect("scene", "temporal", on=("appearance",), margin=MARGIN),
        *_expect("temporal", "from scratch"),
    ),
)

_LOCAL = "attention+mlp, kernel 3, reduction 1.5"
_DIVIDED = "divided space-time attention"  # of TimeSformer
_JOINT = "joint space-time attention, equal cost"  # by 9 frames where the data set has 8
LOCAL_BLOCK = Claim(
    "local_block",
    "Local blocks before attention and MLP help where motion counts, more than attention over time does at equal cost; "
    "three frames and a reduction of 1.5 are enough.",
    "3.2",
    (
        _temporal(_LOCAL),
        _temporal("none", local_blocks="none"),
        _temporal("attention", local_blocks="attention"),
        _temporal("kernel 5", local_kernel=5),
        _temporal("kernel 7", local_kernel=7),
        _temporal("reduction 1", local_reduction=1.0),
        _temporal("reduction 4", local_reduction=4.0),
        Variant(_DIVIDED, HALVED, architecture="divided attention"),
        Variant(_JOINT, HALVED, architecture="joint attention"),
    ),
    _LOCAL,
    (
        *_expect(_LOCAL, "none", "attention", _DIVIDED, _JOINT, on=MOTION),
        *_expect(_LOCAL, "kernel 5", "kernel 7", "reduction 1", on=MOTION, margin=MARGIN),
    ),
    kinds=("motion", "unknown"),
    without=TOO_FEW_VIDEOS,
)

_GLOBAL = "3 stages, 1 query"
GLOBAL_BLOCK = Claim(
    "global_block",
    "Global stages help, and many of them help motion; one query is enough.",
    "3.3",
    (
        _temporal(_GLOBAL),
        _temporal("0 stages", global_after=()),
        _temporal("1 stage", global_after=(3,)),
        _temporal("4 stages", global_after=(0, 1, 2, 3)),
        _temporal("4 queries", num_queries=4),
        _temporal("16 queries", num_queries=16),
    ),
    _GLOBAL,
    (
        *_expect(_GLOBAL, "0 stages"),
        *_expect(_GLOBAL, "1 stage", on=MOTION),
        *_expect(_GLOBAL, "4 queries", "16 queries", margin=MARGIN),
    ),
    without=TOO_FEW_VIDEOS,
)

FUSION = Claim(
    "fusion",
    "Sequential fusion of the global stages is at least as good as parallel and hierarchical fusion.",
    "3.4",
    (
        _temporal("sequential"),
        _temporal("parallel", fusion="parallel"),
        _temporal("hierarchical KV", fusion="hierarchical_kv"),
        _temporal("hierarchical Q", fusion="hierarchical_q"),
    ),
    "sequential",
    _expect("sequential", "parallel", "hierarchical KV", "hierarchical Q", margin=MARGIN),
    without=TOO_FEW_VIDEOS,
)

MIXING = Claim(
    "mixing",
    "The global token mixed with the class token is better than either alone.",
    "3.4",
    (
        _temporal("mixed"),
        _temporal("global token alone", mix_class_token=False),
        _temporal("class token alone", global_after=()),
    ),
    "mixed",
    _expect("mixed", "global token alone", "class token alone"),
    without=TOO_FEW_VIDEOS,
)

_SMALLER = "8 frames of 48 pixels instead of 64"
FRAMES = Claim(
    "frames",
    "More frames, larger clips and more views help, each at a multiple of the cost.",
    "4",
    (
        Variant("8 frames", recipe={"num_frames": 8}),
        Variant("4 frames", recipe={"num_frames": 4}),
        Variant("16 frames", recipe={"num_frames": 16}),
        Variant("8 frames, 3 clips", recipe={"num_frames": 8, "clips": 3}),
        Variant(_SMALLER, recipe={"num_frames": 8, "size": 48}),
    ),
    "8 frames",
    (
        *_expect("8 frames", "4 frames", _SMALLER),
        *_expect("16 frames", "8 frames"),
        *_expect("8 frames, 3 clips", "8 frames"),
    ),
    without=TOO_FEW_VIDEOS,
)

_FROZEN = {"frozen_backbone": True}
_DIFFERENCES = "attentive probe of tokens and their differences in time"
FROZEN = Claim(
    "frozen",
    "With the image transformer frozen, the new blocks alone go far.",
    "4",
    (
        _temporal("all trained"),
        Variant("frozen, local and global blocks", TEMPORAL, recipe=_FROZEN),
        Variant("frozen, global blocks", TEMPORAL | {"local_blocks": "none"}, recipe=_FROZEN),
        Variant("frozen, image only", IMAGE_ONLY, recipe=_FROZEN),
        Variant("attentive probe, 20 settings", IMAGE_ONLY, probe={}),
        Variant(_DIFFERENCES, IMAGE_ONLY, probe={"temporal_differences": True}),
    ),
    "all trained",
    (
        Expectation(_DIFFERENCES, "frozen, image only", "motion"),
        *_expect("frozen, local and global blocks", "frozen, image only"),
        *_expect("frozen, global blocks", "frozen, image only"),
        *_expect("all trained", "frozen, local and global blocks"),
    ),
)

LOCAL_MIXING = Claim(
    "local_mixing",
    "Beyond the paper: frames are mixed better by calibrated convolutions, temporal differences or learned shifts.",
    "-",
    (
        _temporal("convolution"),
        _temporal("calibrated", local_mixing="calibrated"),
        _temporal("differences", local_mixing="differences"),
        _temporal("shift", local_mixing="shift"),
    ),
    "convolution",
    tuple(Expectation(name, "convolution", "motion") for name in ("calibrated", "differences", "shift")),
    kinds=("motion", "unknown"),
)

_LONGER = "supervised, 8 times as many stills"
IMAGE_START = Claim(
    "image_start",
    "Image pre-training helps: contrastive (in the paper with captions) most, then by labels, then masked.",
    "4",
    (
        Variant("supervised", start="supervised"),
        Variant("contrastive", start="contrastive"),
        Variant("masked", start="masked"),
        _temporal(_LONGER),
    ),
    "supervised",
    (
        *(one for name in ("supervised", "contrastive", "masked") for one in _expect(name, "from scratch")),
        *_expect("contrastive", "supervised"),
        *_expect("supervised", "masked"),
    ),
    without=TOO_FEW_VIDEOS,
)

_SHORT = "merged sets, then one epoch"
MERGED = Claim(
    "merged",
    "Pre-training on merged, de-duplicated sets, then a short fine-tuning on one, beats longer training on that one.",
    "4",
    (
        Variant("twice as long", recipe={"epochs": 6}),
        _temporal("as usual"),
        Variant(_SHORT, start="merged", recipe={"epochs": 1}),
        *CONTROLS,
    ),
    "twice as long",
    _expect(_SHORT, "twice as long", "as usual", on=("part",)),
    kinds=("part",),
)

MOTION_FIRST = Claim(
    "motion_first",
    "Beyond the paper: a start that has learned drawn motions reads order in real footage, at no price elsewhere.",
    "-",
    (
        _temporal("stills alone"),
        Variant("motion first", recipe={"motion_first": True}),
        *CONTROLS,
    ),
    "stills alone",
    (
        *_expect("motion first", "stills alone", "image only", on=MOTION),
        *_expect("motion first", "stills alone", on=("appearance",), margin=MARGIN),
    ),
    without=("motions",),  # its teacher
)

REVERSAL = Claim(
    "reversal",
    "Beyond the paper: training clips played backwards, under the label of what they then show, teach order.",
    "-",
    (
        _temporal("as filmed"),
        Variant("and backwards", reverses=True),
        Variant("motion first", recipe={"motion_first": True}),
        Variant("motion first, and backwards", reverses=True, recipe={"motion_first": True}),
        *CONTROLS,
    ),
    "as filmed",
    (
        *_expect("and backwards", "as filmed", on=MOTION),
        *_expect("motion first, and backwards", "as filmed", "motion first", "image only", on=MOTION),
    ),
    kinds=MOTION,
    without=("motions", "miracl_lips"),  # drawn so already; words are not other words backwards
)


def _own(
    name: str, model: Mapping[str, Any] = TEMPORAL, own: str = "own-small-vit", start: Start = "vit_tiny",
    probe: Mapping[str, Any] | None = None, **recipe: Any,
) -> Variant:  # fmt: skip
    return Variant(name, model, start, probe=probe, own=own, transformer="vit_tiny", recipe=OWN_CLIPS | recipe)


OWN_CLIPS = {"size": 144, "num_frames": 8, "precision": "fp32", "compile": False}
OWN_DATA = Claim(
    "own_data",
    "Beyond the paper: what to start with for hundreds of videos of one's own, from an image transformer of ImageNet.",
    "-",
    (
        _own("own-small-vit"),
        _own("motion first", motion_first=True),
        _own("own-medium-vit", own="own-medium-vit"),
        _own("frozen backbone", frozen_backbone=True),
        _own("attentive probe", IMAGE_ONLY, probe={"temporal_differences": True}),
        _own("image only", IMAGE_ONLY),
        _own("from scratch", start="scratch"),
    ),
    "own-small-vit",
    (
        *_expect("own-small-vit", "image only", on=MOTION),
        *_expect("own-small-vit", "from scratch", "own-medium-vit", "attentive probe", "frozen backbone"),
        *_expect("motion first", "own-small-vit", on=MOTION),
        *_expect("motion first", "own-small-vit", on=("appearance",), margin=MARGIN),
    ),
    without=("motions", "scenes", "room_actions"),
    on_request=True,
)

CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        LAYOUTS,
        LOCAL_BLOCK,
        GLOBAL_BLOCK,
        FUSION,
        MIXING,
        FRAMES,
        FROZEN,
        LOCAL_MIXING,
        IMAGE_START,
        MERGED,
        MOTION_FIRST,
        REVERSAL,
        OWN_DATA,
    )
}
