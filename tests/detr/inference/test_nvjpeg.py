"""What surrounds the GPU's decoder, with torchvision's CPU one in its place: the same call."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from detr.config import ModelError
from detr.inference.decode import decode
from detr.inference.nvjpeg import check_nvjpeg, decode_nvjpeg
from tests.odd_files import picture


def jpeg(orientation: int) -> bytes:
    out, exif = BytesIO(), Image.Exif()
    exif[274] = orientation
    Image.fromarray(picture()[:24, :40]).save(out, "JPEG", quality=95, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_are_pils_and_upright(orientation: int) -> None:
    data = jpeg(orientation)
    [pixels] = decode_nvjpeg([data], torch.device("cpu"), max_pixels=10_000, exif=True)
    assert pixels is not None
    np.testing.assert_array_equal(pixels.numpy(), decode(data))


def test_what_it_can_not_take_is_left_to_pil() -> None:
    whole = jpeg(1)
    png = BytesIO()
    Image.fromarray(picture()).save(png, "PNG")
    files = [whole, whole[:300], b"", png.getvalue(), whole]
    found = decode_nvjpeg(files, torch.device("cpu"), max_pixels=10_000, exif=True)
    assert [image is not None for image in found] == [True, False, False, False, True]


def test_a_refused_file_costs_the_others_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.io

    plain = torchvision.io.decode_jpeg

    def moody(encoded: list[torch.Tensor], **settings: object) -> list[torch.Tensor]:
        if any(len(data) % 2 for data in encoded):
            raise RuntimeError("nvjpegDecode failed: 4")
        return plain(encoded, **settings)  # type: ignore[return-value,arg-type]

    monkeypatch.setattr(torchvision.io, "decode_jpeg", moody)
    even = jpeg(1) + b"\0" * (len(jpeg(1)) % 2)
    found = decode_nvjpeg(
        [even, even + b"\0", even], torch.device("cpu"), max_pixels=10_000, exif=True
    )
    assert [image is not None for image in found] == [True, False, True]


def test_without_a_gpu_it_is_refused() -> None:
    with pytest.raises(ModelError, match="needs a GPU: use pil, or draft"):
        check_nvjpeg(torch.device("cpu"))
