"""What surrounds the GPU's decoder, with torchvision's CPU one in its place: the same call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from detr.config import ModelError
from detr.inference.decode import decode_image
from detr.inference.nvjpeg import _stream, check_nvjpeg, decode_nvjpeg
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
    np.testing.assert_array_equal(pixels.numpy(), decode_image(data))


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


def saved(**settings: object) -> bytes:
    out = BytesIO()
    Image.fromarray(picture()[:24, :40]).save(out, "JPEG", **settings)
    return out.getvalue()


def test_a_file_that_stores_rgb_is_left_to_pil() -> None:
    """By Adobe's marker, or by its components' names where no marker says anything."""
    coded = saved(keep_rgb=True)
    start = coded.index(b"\xff\xee")
    bare = coded[:start] + coded[start + 2 + int.from_bytes(coded[start + 2 : start + 4], "big") :]
    usual = saved()
    found = decode_nvjpeg([coded, bare, usual], torch.device("cpu"), max_pixels=10_000, exif=True)
    assert [image is not None for image in found] == [False, False, True]


def test_memory_that_runs_out_leaves_the_batch_to_pil_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torchvision.io

    calls = []

    def full(encoded: list[torch.Tensor], **settings: object) -> list[torch.Tensor]:
        calls.append(len(encoded))
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", full)
    found = decode_nvjpeg([saved()] * 4, torch.device("cpu"), max_pixels=10_000, exif=True)
    assert found == [None] * 4
    assert calls == [4]


def test_a_lost_device_is_no_matter_of_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.io

    def lost(encoded: list[torch.Tensor], **settings: object) -> list[torch.Tensor]:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torchvision.io, "decode_jpeg", lost)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        decode_nvjpeg([saved()] * 2, torch.device("cpu"), max_pixels=10_000, exif=True)


class Queue:
    """A stream of a made device: work waits in it until somebody synchronises."""

    def __init__(self, device: object = None) -> None:
        self.waiting: list[Callable[[], object]] = []

    def synchronize(self) -> None:
        while self.waiting:
            self.waiting.pop(0)()


class Device:
    """A device whose decoder writes late, on a stream of its own, into memory that it takes from
    what the caller's stream gave back: as torchvision on a GPU does."""

    type = "cuda"

    def __init__(self, shape: tuple[int, int, int]) -> None:
        self.shape = shape
        self.model, self.current = Queue(), None
        self.pools: dict[Queue, list[torch.Tensor]] = {}

    @contextmanager
    def stream(self, stream: Queue) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def here(self) -> Queue:
        return self.current or self.model

    def allocate(self) -> torch.Tensor:
        """Memory given back on this stream, at once: its kernels run in order."""
        pool = self.pools.setdefault(self.here(), [])
        return pool.pop() if pool else torch.zeros(self.shape, dtype=torch.uint8)

    def decode_jpeg(self, encoded: list[torch.Tensor], **settings: object) -> list[torch.Tensor]:
        images = []
        for data in encoded:
            pixels = torch.from_numpy(decode_image(data.numpy().tobytes())).permute(2, 0, 1)
            image = self.allocate()
            image.fill_(0)  # the decoder obeys no stream: it writes whenever it likes
            self.here().waiting.append(partial(image.copy_, pixels))
            images.append(image)
        return images


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    import torchvision.io

    made = Device((3, 24, 40))
    monkeypatch.setattr(torchvision.io, "decode_jpeg", made.decode_jpeg)
    monkeypatch.setattr(torch.cuda, "Stream", Queue)
    monkeypatch.setattr(torch.cuda, "stream", made.stream)
    _stream.cache_clear()
    yield made
    _stream.cache_clear()


def test_the_decoder_writes_into_no_memory_that_queued_work_reads(device: Device) -> None:
    activations = device.allocate().fill_(9)
    sums: list[int] = []
    device.model.waiting.append(lambda: sums.append(int(activations.sum())))
    device.pools[device.model] = [activations]  # freed by the host, but still to be read
    data = saved()
    [pixels] = decode_nvjpeg([data], device, max_pixels=10_000, exif=True)  # type: ignore[arg-type]
    device.model.synchronize()
    assert sums == [9 * activations.numel()]
    assert pixels is not None


def test_the_pixels_are_there_when_the_decoder_returns(device: Device) -> None:
    data = saved()
    [pixels] = decode_nvjpeg([data], device, max_pixels=10_000, exif=True)  # type: ignore[arg-type]
    assert pixels is not None
    np.testing.assert_array_equal(pixels.numpy(), decode_image(data))


def test_what_the_stream_still_holds_is_over_before_it_decodes(device: Device) -> None:
    """A copy of the last decode's memory, say."""
    data, late = saved(), []
    _stream(device).waiting.append(lambda: late.append(1))  # type: ignore[attr-defined,arg-type]
    plain = device.decode_jpeg

    def decode_late(encoded: list[torch.Tensor], **settings: object) -> list[torch.Tensor]:
        assert late, "something was under way when it began"
        return plain(encoded, **settings)

    import torchvision.io

    torchvision.io.decode_jpeg = decode_late  # type: ignore[assignment]  # the fixture undoes it
    assert decode_nvjpeg([data], device, max_pixels=10_000, exif=True)  # type: ignore[arg-type]
