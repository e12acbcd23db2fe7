"""`network` is a plain module: what students do next works on what the notebook's own cells leave behind."""

import copy
import io
import pickle
from contextlib import redirect_stdout

import joblib
import pytest
import torch
import torch.nn.functional as F
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from torch import nn, optim
from torch.nn.utils import parameters_to_vector, prune
from torchvision.models.feature_extraction import create_feature_extractor

import utils
from cells import NOTEBOOK, run
from conftest import ROOT
from model import Net


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What the notebook leaves behind, run in a folder without results/ and own_digit/; `said` is what it printed."""
    folder = tmp_path_factory.mktemp("lesson")
    (folder / "data").symlink_to(ROOT / "data")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.chdir(folder)
        return run(last="reload") | dict(said=said)


@pytest.fixture
def network(left):
    return copy.deepcopy(left["network"])


@pytest.fixture
def x(left):
    return utils.normalize(left["test"][0][:16])


def train(left, network) -> dict:
    """One epoch more, as the notebook trains."""
    (images, labels), optimizer = left["train"], optim.SGD(network.parameters(), lr=0.01)
    loader = utils.Loader(images[:512], labels[:512], 128, left["augment"])
    return utils.fit(network, optimizer, None, loader, (images[:100], labels[:100]), 1)


def test_it_is_what_net_builds(network):
    assert type(network) is Net and str(network) == str(Net()) and "inplace=True" not in str(network)
    assert all(parameter.is_contiguous() and parameter.layout == torch.strided for parameter in network.parameters())
    for layer in network.modules():
        assert not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def test_without_results_and_own_digit_it_runs_to_the_saved_weights(left):
    """One epoch of few images does not reach the goal."""
    for line in ("✗ test accuracy", "✓ parameters", "results/ is missing", "same predictions: True"):
        assert line in left["said"].getvalue()


def saved(network, save, load):
    save(network, file := io.BytesIO())
    file.seek(0)
    return load(file)


def quantizable(network):
    wrapped = nn.Sequential(torch.ao.quantization.QuantStub(), network, torch.ao.quantization.DeQuantStub()).eval()
    wrapped.qconfig = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine)
    return torch.ao.quantization.prepare(wrapped)


OTHERS = {  # another form of the same network
    "pickle": lambda network, x: pickle.loads(pickle.dumps(network)),
    "torch.save": lambda network, x: saved(network, torch.save, lambda file: torch.load(file, weights_only=False)),
    "joblib": lambda network, x: saved(network, joblib.dump, joblib.load),
    "children": lambda network, x: nn.Sequential(*network.children()),
    "features": lambda network, x: create_feature_extractor(network, ["tran2"]),
    "torch.fx": lambda network, x: torch.fx.symbolic_trace(network),
    "torch.jit": lambda network, x: torch.jit.trace(network, x),
    "torch.export": lambda network, x: torch.export.export(network, (x,)).module(),
    "quantization": lambda network, x: quantizable(network),
}


@pytest.mark.parametrize("form", OTHERS)
def test_other_forms_of_it_predict_the_same(network, x, form):
    network.eval()
    with torch.no_grad():
        output = OTHERS[form](network, x)(x)
        torch.testing.assert_close(output["tran2"] if form == "features" else output, network(x))


def dropping(network):
    for layer in network.modules():
        layer.p = 0.2
    return network


def pruned(network):
    prune.l1_unstructured(network.conv3[0], "weight", amount=0.5)
    return network


def with_letters(network):
    network.tran2 = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 26), nn.LogSoftmax(1))
    return network


@pytest.mark.parametrize("change", [dropping, pruned, with_letters, torch.fx.symbolic_trace, torch.nn.DataParallel])
def test_changed_networks_train(left, network, x, change):
    changed = change(network)
    assert train(left, changed)["train_loss"] and changed(x).shape == (16, 26 if change is with_letters else 10)
    if change is pruned:
        assert (changed.conv3[0].weight == 0).float().mean() >= 0.49


def test_gradients_are_there_to_look_at(left, network, x):
    with torch.autograd.detect_anomaly(check_nan=True):
        train(left, network)
    with torch.autocast("cpu", torch.bfloat16):
        train(left, network)
    (gradient,) = torch.autograd.grad(network.train()(x)[:, 0].sum(), network.conv1[0].weight, create_graph=True)
    gradient.square().sum().backward()
    assert network.conv2[0].weight.grad.abs().max() > 0


def test_grad_cam(network, x):
    kept = {}
    network.conv6[0].register_forward_hook(lambda _, inputs, output: kept.update(maps=output))
    network.conv6[0].register_full_backward_hook(lambda _, inputs, outputs: kept.update(gradients=outputs[0]))
    network.eval()(x)[:, 3].sum().backward()
    weights = kept["gradients"].mean((2, 3), keepdim=True)
    assert F.relu((weights * kept["maps"]).sum(1)).shape == (16, 5, 5) and weights.abs().max() > 0


def test_lbfgs_on_weights_that_are_one_vector(left, network, x):
    assert len(parameters_to_vector(network.parameters())) == 9_768

    def closure():
        (loss := F.nll_loss(network(x), left["test"][1][:16])).backward()
        return loss

    assert optim.LBFGS(network.parameters(), max_iter=1).step(closure).isfinite()


def test_papermill_changes_a_number():
    changed = parameterize_notebook(load_notebook_node(str(ROOT / "A6.ipynb")), dict(EPOCHS=2, LEARNING_RATE=0.1))
    numbers = run(changed, "training")["hyperparameters"]
    assert (numbers["epochs"], numbers["learning_rate"], numbers["batch_size"]) == (2, 0.1, 128)


def test_pictures_show_and_edits_are_seen_in_any_jupyter():
    lines = {line for cell in NOTEBOOK.cells for line in cell.source.splitlines()}
    assert {"%load_ext autoreload", "%autoreload 2", "%matplotlib inline"} <= lines
