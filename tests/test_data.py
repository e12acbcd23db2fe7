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
def copy(tmp_path):
    """A copy of data/ to damage; returns the folder of its gzip files."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(RAW / name, raw / name)
    return raw


@pytest.fixture
def serve():
    """Start a web server that sends `count` bytes of each file of data/, and promises all; returns its address."""
    servers = []

    def start(count: int | None = None) -> str:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def copyfile(self, source, output):
                output.write(source.read(count))

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(RAW)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server in servers:
        server.shutdown()


def idx(name: str, header: int) -> np.ndarray:
    return np.frombuffer(gzip.decompress((RAW / name).read_bytes()), np.uint8, offset=header)


def test_images_and_labels_are_those_of_the_files(mnist):
    for (images, labels), part, count in zip(mnist, ("train", "t10k"), (60_000, 10_000)):
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        np.testing.assert_array_equal(images, idx(f"{part}-images-idx3-ubyte.gz", 16).reshape(count, 28, 28))
        np.testing.assert_array_equal(labels, idx(f"{part}-labels-idx1-ubyte.gz", 8))


def test_a_truncated_unpacked_file_is_not_read_and_nothing_is_written(copy, mnist):
    (copy / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03half a file")
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    train, _ = utils.load_mnist(copy.parent.parent, "cpu")
    assert torch.equal(train[0], mnist[0][0])
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


@pytest.mark.parametrize("damage", ["first byte", "last byte", "empty", "HTML", "missing"])
def test_what_is_not_the_data_is_an_error_that_names_file_and_remedy(copy, monkeypatch, damage):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    path = copy / FILES[2]
    content = bytearray(path.read_bytes())
    content[0 if damage == "first byte" else -1] ^= 1
    path.write_bytes(dict(empty=b"", HTML=b"<!DOCTYPE html><title>503</title>").get(damage, content))
    if damage == "missing":
        path.unlink()
    with pytest.raises(RuntimeError, match=rf"{path.name} is .*could not be downloaded.*git checkout -- data"):
        utils.load_mnist(copy.parent.parent, "cpu")


def test_the_first_mirror_that_has_the_file_repairs_it(copy, mnist, serve, monkeypatch):
    """One that does not answer, and one that breaks off, come first."""
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", serve(count=1000), serve()])
    (copy / FILES[1]).write_bytes(b"damaged")
    train, _ = utils.load_mnist(copy.parent.parent, "cpu")
    assert torch.equal(train[1], mnist[0][1])
    assert (
        hashlib.sha256((copy / FILES[1]).read_bytes()).digest()
        == hashlib.sha256((RAW / FILES[1]).read_bytes()).digest()
    )
    assert sorted(path.name for path in copy.iterdir()) == sorted(FILES)


def test_a_download_serves_also_where_it_cannot_be_kept(copy, mnist, serve, monkeypatch):
    def read_only(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(MNIST, "mirrors", [serve()])
    monkeypatch.setattr(storage, "save_bytes", read_only)
    (copy / FILES[3]).unlink()
    _, test = utils.load_mnist(copy.parent.parent, "cpu")
    assert torch.equal(test[1], mnist[1][1])


def test_md5_is_not_used_for_security(copy, mnist, monkeypatch):
    """Hosts that follow FIPS refuse MD5 unless told so."""
    md5 = hashlib.md5

    def fips(*arguments, usedforsecurity=True):
        if usedforsecurity:
            raise ValueError("disabled for FIPS")
        return md5(*arguments)

    monkeypatch.setattr(hashlib, "md5", fips)
    assert torch.equal(utils.load_mnist(copy.parent.parent, "cpu")[1][1], mnist[1][1])
