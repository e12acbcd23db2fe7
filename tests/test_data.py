"""Data: what is loaded is MNIST, byte for byte, or nothing."""

import functools
import gzip
import hashlib
import http.server
import re
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import MNIST

import utils

RAW = Path("data/MNIST/raw")
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
def offline(monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])


@pytest.fixture
def serve():
    """Start a web server over a folder; returns its address."""
    servers = []

    def start(folder: Path) -> str:
        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
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


def test_readme_of_the_data_names_the_committed_files():
    rows = dict(
        re.findall(r"^\| `(\S+\.gz)` \| [\d,]+ \| `([0-9a-f]{32})` \|$", Path("data/README.md").read_text(), re.M)
    )
    assert rows == {name: hashlib.md5((RAW / name).read_bytes()).hexdigest() for name in FILES} == dict(MNIST.resources)


def test_loading_leaves_the_data_folder_as_it_is(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    utils.load_mnist(copy.parent.parent, "cpu")
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_a_truncated_unpacked_file_is_not_read(copy, mnist):
    (copy / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03half a file")
    train, _ = utils.load_mnist(copy.parent.parent, "cpu")
    assert torch.equal(train[0], mnist[0][0])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0], ids=["head", "middle", "end"])
def test_one_altered_byte_is_an_error_that_names_file_and_remedy(copy, offline, name, place):
    content = bytearray((copy / name).read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"{name} is corrupt .*could not be downloaded.*git checkout -- data"):
        utils.load_mnist(copy.parent.parent, "cpu")
    assert (copy / name).read_bytes() == bytes(content), "the damaged file is evidence, it stays"


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><title>503</title>", None], ids=["empty", "HTML", "missing"])
def test_what_is_no_data_is_an_error_that_names_file_and_remedy(copy, offline, content):
    path = copy / FILES[2]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    state = "is missing" if content is None else "is corrupt"
    with pytest.raises(RuntimeError, match=rf"{path.name} {state}.*git checkout -- data"):
        utils.load_mnist(copy.parent.parent, "cpu")


def test_a_damaged_file_is_repaired_from_the_first_mirror_that_has_it(copy, mnist, serve, tmp_path, monkeypatch):
    page = tmp_path / "page"
    page.mkdir()
    (page / FILES[1]).write_text("<!DOCTYPE html><title>Please log in</title>")
    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/", serve(page), serve(RAW)])
    (copy / FILES[1]).write_bytes(b"damaged")
    train, _ = utils.load_mnist(copy.parent.parent, "cpu")
    assert torch.equal(train[1], mnist[0][1])
    assert (copy / FILES[1]).read_bytes() == (RAW / FILES[1]).read_bytes()
    assert sorted(path.name for path in copy.iterdir()) == sorted(FILES)


def test_a_download_serves_also_where_it_cannot_be_kept(copy, mnist, serve, monkeypatch):
    monkeypatch.setattr(MNIST, "mirrors", [serve(RAW)])
    (copy / FILES[3]).unlink()

    def read_only(*_):
        raise PermissionError("read-only file system")

    monkeypatch.setattr(utils, "save_bytes", read_only)
    _, test = utils.load_mnist(copy.parent.parent, "cpu")
    assert torch.equal(test[1], mnist[1][1])


def test_no_temporary_folder_is_needed(copy, mnist, monkeypatch):
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [])
    monkeypatch.setattr(tempfile, "tempdir", None)
    with pytest.raises(FileNotFoundError):
        tempfile.gettempdir()
    assert torch.equal(utils.load_mnist(copy.parent.parent, "cpu")[0][1], mnist[0][1])


IMAGES, LABELS = torch.zeros(4, 28, 28, dtype=torch.uint8), torch.tensor([0, 1, 9, 3])


@pytest.mark.parametrize(
    "images, labels, message",
    [
        (IMAGES.float(), LABELS, r"images must be uint8 \[N, 28, 28\], got torch.float32 \[4, 28, 28\]"),
        (IMAGES[:, None], LABELS, r"images must be uint8 \[N, 28, 28\], got torch.uint8 \[4, 1, 28, 28\]"),
        (IMAGES[:, :27], LABELS, r"got torch.uint8 \[4, 27, 28\]"),
        (IMAGES, LABELS.float(), r"labels must be int64 \[N\], got torch.float32"),
        (IMAGES, LABELS[:, None], r"labels must be int64 \[N\], got torch.int64 \[4, 1\]"),
        (IMAGES, LABELS[:3], "4 images but 3 labels"),
        (IMAGES[:0], LABELS[:0], "the data set is empty"),
        (IMAGES, LABELS + 1, "digits 0–9, got values from 1 to 10"),
        (IMAGES, LABELS - 1, "digits 0–9, got values from -1 to 8"),
    ],
)
def test_bad_data_is_named(images, labels, message):
    with pytest.raises(ValueError, match=message):
        utils.check_data(images, labels)


def test_good_data_passes():
    utils.check_data(IMAGES, LABELS)
