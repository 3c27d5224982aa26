"""The whole model against transformers' with the same weights, and its shortcuts against itself."""

import pytest
import torch
from torch import Tensor

from detr.config import DetrConfig
from detr.models.detr import DetrPanoptic
from detr.weights.hf_names import to_official
from detr.weights.infer_config import infer_config
from tests.detr import hugging_face
from tests.random_weights import tiny_config


def from_hugging_face(reference: torch.nn.Module) -> DetrPanoptic:
    weights = to_official(reference.state_dict())
    model = DetrPanoptic(infer_config("reference", {k: v.shape for k, v in weights.items()}))
    model.load_state_dict(weights)
    return model.eval()


def padded_batch(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Three images, the last two smaller; values are 0 on padding."""
    torch.manual_seed(height)
    images = torch.randn(3, 3, height, width)
    padding = torch.zeros(3, height, width, dtype=torch.bool)
    padding[1, height * 2 // 3 :] = True
    padding[2, :, width * 3 // 4 :] = True
    return images.masked_fill(padding[:, None], 0), padding


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def test_class_logits_are_float32_whatever_the_rest_is():
    model = DetrPanoptic(tiny_config()).eval()
    weight = model.detr.class_embed.weight.detach().clone()
    folded = model.fold(torch.bfloat16)
    assert torch.equal(folded.detr.class_embed.weight, weight)
    found = folded.detect(torch.randn(2, 3, 64, 96).bfloat16())
    assert found.logits.dtype == torch.float32
    assert found.embeddings.dtype == torch.bfloat16
    wanted = found.embeddings.float() @ weight.T + folded.detr.class_embed.bias
    assert torch.allclose(found.logits[-1], wanted, atol=1e-5)


def test_the_published_files_490_tensors():
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in DetrPanoptic(DetrConfig()).state_dict().items()}
    assert len(shapes) == 490
    assert shapes["detr.class_embed.weight"] == (251, 256)
    assert shapes["detr.query_embed.weight"] == (100, 256)
    assert shapes["detr.backbone.0.body.layer4.0.downsample.0.weight"] == (2048, 1024, 1, 1)
    assert shapes["detr.transformer.decoder.layers.5.multihead_attn.in_proj_weight"] == (768, 256)
    assert shapes["mask_head.adapter1.weight"] == (128, 1024, 1, 1)
    assert shapes["mask_head.out_lay.weight"] == (1, 16, 3, 3)


@torch.no_grad()
def test_parity_with_transformers_at_r50():
    reference = hugging_face.make(hugging_face.R50)
    model = from_hugging_face(reference)
    images, padding = padded_batch(97, 131)
    theirs = reference(pixel_values=images[:2], pixel_mask=(~padding[:2]).long())
    ours = model(images[:2], padding[:2])
    assert_close(ours.logits, theirs.logits)
    assert_close(ours.boxes, theirs.pred_boxes)
    assert ours.mask_logits is not None
    assert_close(ours.mask_logits, theirs.pred_masks)


@pytest.mark.parametrize("size", [(128, 96), (97, 131), (65, 33), (191, 63)])
@torch.no_grad()
def test_parity_with_transformers_on_padded_batches_of_odd_sizes(size):
    reference = hugging_face.make(hugging_face.SMALL)
    model = from_hugging_face(reference)
    images, padding = padded_batch(*size)
    theirs = reference(pixel_values=images, pixel_mask=(~padding).long())
    ours = model(images, padding)
    assert_close(ours.logits, theirs.logits)
    assert_close(ours.boxes, theirs.pred_boxes)
    assert ours.mask_logits is not None
    assert_close(ours.mask_logits, theirs.pred_masks)


@torch.no_grad()
def test_the_inference_path_is_transformers_on_unpadded_images():
    reference = hugging_face.make(hugging_face.SMALL)
    model = from_hugging_face(reference).fold()
    images = torch.randn(2, 3, 97, 131)
    theirs = reference(pixel_values=images)
    found = model.detect(images)
    assert_close(found.logits[-1], theirs.logits)
    assert_close(found.boxes[-1], theirs.pred_boxes)
    image_index, query_index = torch.tensor([1, 0, 1, 1]), torch.tensor([8, 3, 0, 5])
    wanted = theirs.pred_masks[image_index, query_index]
    assert_close(model.mask_logits(found, image_index, query_index), wanted)
    assert_close(model.mask_logits(found, image_index, query_index, chunk=3), wanted)


@torch.no_grad()
def test_no_query_kept_is_no_mask():
    model = DetrPanoptic(tiny_config()).fold()
    found = model.detect(torch.randn(1, 3, 64, 64))
    none = torch.zeros(0, dtype=torch.int64)
    assert model.mask_logits(found, none, none).shape == (0, 16, 16)


@torch.no_grad()
def test_chosen_masks_are_the_same_as_among_all():
    torch.manual_seed(0)
    model = DetrPanoptic(tiny_config()).eval()
    images, padding = padded_batch(64, 80)
    pairs = torch.tensor([2, 0, 0]), torch.tensor([7, 1, 15])
    everything = model(images, padding)
    detection = model.detr(images, padding, every_layer=True)
    chosen = model.mask_logits(detection, *pairs)
    assert torch.allclose(chosen, everything.mask_logits[pairs], atol=1e-5)
    assert len(everything.aux) == model.config.dec_layers - 1


def test_every_trainable_weight_gets_a_gradient():
    torch.manual_seed(0)
    model = DetrPanoptic(tiny_config())
    out = model(torch.randn(2, 3, 64, 80))
    loss = out.logits.sum() + out.boxes.sum() + out.mask_logits.square().sum()
    (loss + sum(logits.sum() + boxes.sum() for logits, boxes in out.aux)).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
