"""The architecture of a DETR panoptic model (`DetrConfig`), and the three published checkpoints.

Everything that decides the shape of a weight or the geometry of an input stands here and nowhere
else. A config is checked once, when it is made; our weight files carry it as JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal

THRESHOLD: Final = 0.85  # least class probability of a segment, as published


class ModelError(ValueError):
    """Weights or settings can't be used; the message says why, and what to do."""


def is_threshold(value: float) -> bool:
    """Whether a least class probability of a segment is at least 0 and below 1."""
    return 0 <= value < 1


def check_threshold(value: float) -> None:
    """Raises ModelError for a value that is no threshold."""
    if not is_threshold(value):
        raise ModelError(f"threshold must be at least 0 and below 1, not {value}")


@dataclass(frozen=True, kw_only=True)
class DetrConfig:
    """The architecture. The defaults are the published R50 panoptic model."""

    # Backbone: four stages at strides s, 2s, 4s, 8s, where s is `stem_stride`.
    block: Literal["bottleneck", "basic"] = "bottleneck"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem_stride: Literal[2, 4] = 4  # 2 leaves the max-pooling out: more tokens for small images
    dilation: bool = False  # DC5: the last stage keeps the stride of the third
    frozen_norm: bool = True  # False: batch norm learns its statistics (training from scratch)
    # Transformer
    hidden_dim: int = 256
    nheads: int = 8
    enc_layers: int = 6
    dec_layers: int = 6
    dim_feedforward: int = 2048
    dropout: float = 0.1  # training only
    num_queries: int = 100
    num_classes: int = 250  # without no-object, which is the last logit
    # Mask head: widths (hidden + nheads), hidden / 2, / 4, / 8, / 16, each in this many groups
    mask_groups: int = 8
    # Input geometry in pixels
    size: int = 800  # shorter side
    max_size: int = 1333  # longer side at most

    def __post_init__(self) -> None:
        for name in ("depths", "widths"):
            value = tuple(int(n) for n in getattr(self, name))
            object.__setattr__(self, name, value)
            if len(value) != 4 or min(value) < 1:
                raise ModelError(f"{name} must be four positive numbers, one per stage: {value}")
        if self.block not in ("bottleneck", "basic"):
            raise ModelError(f"block must be 'bottleneck' or 'basic', not {self.block!r}")
        if self.stem_stride not in (2, 4):
            raise ModelError(f"stem_stride must be 2 or 4, not {self.stem_stride!r}")
        for name in (field.name for field in fields(self) if field.type == "int"):
            if getattr(self, name) < 1:
                raise ModelError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_size < self.size:
            raise ModelError(f"max_size ({self.max_size}) must not be below size ({self.size})")
        if self.hidden_dim % 16:
            raise ModelError(f"hidden_dim must be a multiple of 16, not {self.hidden_dim}")
        if self.hidden_dim % self.nheads:
            raise ModelError(f"nheads ({self.nheads}) must divide hidden_dim ({self.hidden_dim})")
        for width in self.mask_widths:
            if width % self.mask_groups:
                raise ModelError(
                    f"mask_groups ({self.mask_groups}) must divide every width of the mask head "
                    f"{self.mask_widths}: choose fewer groups or a larger hidden_dim"
                )

    @property
    def mask_widths(self) -> tuple[int, ...]:
        """Output channels of the mask head's five convolutions, coarse to fine."""
        hidden = self.hidden_dim
        return (hidden + self.nheads, hidden // 2, hidden // 4, hidden // 8, hidden // 16)

    @property
    def stage_channels(self) -> tuple[int, ...]:
        """Channels of Res2, Res3, Res4, Res5: (256, 512, 1024, 2048) as published."""
        expansion = 4 if self.block == "bottleneck" else 1
        return tuple(width * expansion for width in self.widths)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Pixels per cell of Res2, Res3, Res4, Res5: (4, 8, 16, 32) as published."""
        stem = self.stem_stride
        return (stem, 2 * stem, 4 * stem, 4 * stem if self.dilation else 8 * stem)

    @property
    def backbone(self) -> str:
        """The backbone's usual name ("resnet50-dc5"), else its block and depths."""
        for name, depths in RESNET_DEPTHS.items():
            if self.depths == depths and self.widths == (64, 128, 256, 512):
                return name + ("-dc5" if self.dilation else "")
        return f"resnet-{self.block}-" + "-".join(map(str, self.depths))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` gives an equal config back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DetrConfig:
        """The config of the result of `to_dict`. Raises ModelError for an unknown field."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ModelError(f"the model's config has unknown fields {', '.join(unknown)}")
        return cls(**values)


RESNET_DEPTHS: dict[str, tuple[int, ...]] = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One published checkpoint: where it is, how to recognise it, what it scores."""

    name: str
    config: DetrConfig
    url: str
    sha256_prefix: str  # first 8 hex digits, also part of the file's name
    pq: float  # on COCO panoptic val2017, as published
    megabytes: int


def _recipe(name: str, config: DetrConfig, prefix: str, pq: float, megabytes: int) -> Recipe:
    return Recipe(
        name=name,
        config=config,
        url=f"https://dl.fbaipublicfiles.com/detr/detr-{name}-panoptic-{prefix}.pth",
        sha256_prefix=prefix,
        pq=pq,
        megabytes=megabytes,
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _recipe("r50", DetrConfig(), "00ce5173", 43.4, 165),
        _recipe("r50-dc5", DetrConfig(dilation=True), "da08f1b1", 44.6, 165),
        _recipe("r101", DetrConfig(depths=RESNET_DEPTHS["resnet101"]), "40021d53", 45.1, 237),
    )
}
