"""Data: what is loaded is MNIST, byte for byte, or nothing."""

import gzip
import shutil
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

import utils
from conftest import ROOT

RAW = ROOT / "data/MNIST/raw"
FILES = [name for name, _ in MNIST.resources]


@pytest.fixture
def raw(tmp_path):
    """The folder of the gzip files in a copy of data/, to damage."""
    return shutil.copytree(RAW, tmp_path / "MNIST/raw", ignore=lambda folder, names: set(names) - set(FILES))


def test_images_and_labels_are_those_of_the_files(mnist):
    for (images, labels), part, count in zip(mnist, ("train", "t10k"), (60_000, 10_000)):
        pixels, digits = (gzip.decompress(path.read_bytes()) for path in sorted(RAW.glob(f"{part}-*.gz")))
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        np.testing.assert_array_equal(images, np.frombuffer(pixels[16:], np.uint8).reshape(count, 28, 28))
        np.testing.assert_array_equal(labels, np.frombuffer(digits[8:], np.uint8))


def test_a_truncated_unpacked_file_is_not_read(raw, mnist):
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03half a file")
    assert torch.equal(utils.load_mnist(raw.parents[1], "cpu")[0][0], mnist[0][0])


@pytest.mark.parametrize("damage", ["one bit", "HTML", "missing"])
def test_what_is_not_the_data_is_an_error_that_names_file_and_remedy(raw, monkeypatch, damage):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    path = raw / FILES[2]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(b"<!DOCTYPE html><title>503</title>" if damage == "HTML" else content)
    if damage == "missing":
        path.unlink()
    with pytest.raises(RuntimeError, match=rf"{path.name} is .*could not be downloaded.*git checkout -- data"):
        utils.load_mnist(raw.parents[1], "cpu")


def test_the_first_mirror_that_has_the_file_repairs_it(raw, mnist, monkeypatch):
    """One that does not answer, and one that fails otherwise, come first."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=RAW))
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", "no address", address])
    (raw / FILES[1]).write_bytes(b"damaged")
    assert torch.equal(utils.load_mnist(raw.parents[1], "cpu")[0][1], mnist[0][1])
    assert (raw / FILES[1]).read_bytes() == (RAW / FILES[1]).read_bytes()
    assert sorted(path.name for path in raw.iterdir()) == sorted(FILES)
