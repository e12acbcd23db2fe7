"""Data: what is loaded is MNIST, byte for byte, or nothing."""

import functools
import gzip
import hashlib
import http.server
import shutil
import threading

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

import storage
import utils
from conftest import ROOT

RAW = ROOT / "data/MNIST/raw"
FILES = [name for name, _ in MNIST.resources]


@pytest.fixture
def raw(tmp_path):
    """The folder of the gzip files in a copy of data/, to damage."""
    return shutil.copytree(RAW, tmp_path / "MNIST/raw", ignore=lambda folder, names: set(names) - set(FILES))


def serve(count: int | None = None) -> str:
    """The address of a web server that sends `count` bytes of each file of data/, and promises all."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def copyfile(self, source, output):
            output.write(source.read(count))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=RAW))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def test_images_and_labels_are_those_of_the_files(mnist):
    for (images, labels), part, count in zip(mnist, ("train", "t10k"), (60_000, 10_000)):
        pixels, digits = (gzip.decompress(path.read_bytes()) for path in sorted(RAW.glob(f"{part}-*.gz")))
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        np.testing.assert_array_equal(images, np.frombuffer(pixels[16:], np.uint8).reshape(count, 28, 28))
        np.testing.assert_array_equal(labels, np.frombuffer(digits[8:], np.uint8))


def test_a_truncated_unpacked_file_is_not_read_and_nothing_is_written(raw, mnist):
    (raw / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03half a file")
    before = {path: path.stat().st_mtime_ns for path in raw.rglob("*")}
    assert torch.equal(utils.load_mnist(raw.parents[1], "cpu")[0][0], mnist[0][0])
    assert {path: path.stat().st_mtime_ns for path in raw.rglob("*")} == before


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


def refuse(*_):
    raise PermissionError("read-only file system")


@pytest.mark.parametrize("kept", [True, False])
def test_the_first_mirror_that_has_the_file_repairs_it(raw, mnist, monkeypatch, kept):
    """One that does not answer, and one that breaks off, come first; in a read-only folder nothing can be kept."""
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", serve(count=1000), serve()])
    if not kept:
        monkeypatch.setattr(storage, "save_bytes", refuse)
    (raw / FILES[1]).write_bytes(b"damaged")
    assert torch.equal(utils.load_mnist(raw.parents[1], "cpu")[0][1], mnist[0][1])
    assert ((raw / FILES[1]).read_bytes() == (RAW / FILES[1]).read_bytes()) == kept
    assert sorted(path.name for path in raw.iterdir()) == sorted(FILES)


def test_md5_is_not_used_for_security(mnist, monkeypatch):
    """Hosts that follow FIPS refuse MD5 unless told so."""
    md5 = hashlib.md5

    def fips(*arguments, usedforsecurity=True):
        assert not usedforsecurity, "disabled for FIPS"
        return md5(*arguments)

    monkeypatch.setattr(hashlib, "md5", fips)
    assert torch.equal(utils.load_mnist(ROOT / "data", "cpu")[1][1], mnist[1][1])
