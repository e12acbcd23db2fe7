"""`network` is a plain module: what students do next works on what the notebook's own cells leave behind."""

import copy
import io
import pickle
from contextlib import redirect_stdout

import joblib
import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from torch import nn, optim
from torch.nn.utils import parameters_to_vector, prune
from torchvision.models.feature_extraction import create_feature_extractor

import utils
from conftest import ROOT
from model import Net

NOTEBOOK = nbformat.read(ROOT / "A6.ipynb", as_version=4)


def run(notebook: nbformat.NotebookNode, last: str) -> dict:
    """The names that the notebook's cells define up to the one tagged `last`, without magics and Colab's cell."""
    namespace = {"display": lambda *_: None}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type == "code" and "colab" not in tags:
            exec("\n".join(line for line in cell.source.splitlines() if not line.startswith("%")), namespace)
        if last in tags:
            return namespace
    raise LookupError(last)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """What the notebook leaves behind, run in a folder without results/ and own_digit/; `said` is what it printed."""
    folder = tmp_path_factory.mktemp("lesson")
    (folder / "data").symlink_to(ROOT / "data")
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.chdir(folder)
        return run(NOTEBOOK, "reload") | dict(said=said)


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
    scheduler = optim.lr_scheduler.StepLR(optimizer, 10)
    return utils.fit(network, optimizer, scheduler, loader, (images[:100], labels[:100]), 1)


def test_it_is_what_net_builds(network):
    assert type(network) is Net and str(network) == str(Net()) and "inplace=True" not in str(network)
    assert all(parameter.is_contiguous() and parameter.layout == torch.strided for parameter in network.parameters())
    for layer in network.modules():
        assert not (layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks)


def test_without_results_and_own_digit_it_runs_to_the_saved_weights(left):
    """One epoch of few images does not reach the goal."""
    for line in ("✗ test accuracy", "✓ parameters", "results/ is missing", "same predictions: True"):
        assert line in left["said"].getvalue()


def test_saving_the_whole_module(network, x, tmp_path):
    torch.save(network.eval(), tmp_path / "torch")
    joblib.dump(network, tmp_path / "joblib")
    others = torch.load(tmp_path / "torch", weights_only=False), joblib.load(tmp_path / "joblib")
    for other in (*others, pickle.loads(pickle.dumps(network))):
        assert torch.equal(other(x), network(x))


def test_looking_at_activations(network, x):
    seen = []
    network.train().conv1.register_forward_hook(lambda _, inputs, output: seen.append(output.detach()))
    with torch.no_grad():
        network(x)
        direct = network.conv1(x)
    assert np.histogram(seen[0].numpy())[0].sum() == direct.numel() and (direct == 0).float().mean() < 1
    torch.testing.assert_close(seen[0], direct)


def test_features_and_slices(network, x):
    network.eval()
    features = create_feature_extractor(network, ["conv6"])(x)["conv6"]
    assert torch.equal(network.tran2(features), network(x))
    for extractor in (nn.Sequential(*list(network.children())[:-1]), network[:-1]):
        assert torch.equal(extractor(x), features)
    assert type(network[:3]) is nn.Sequential and network[:3].conv3 is network.conv3


def test_a_new_head_for_26_letters(left, network, x):
    network.tran2 = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 26), nn.LogSoftmax(1))
    letters = left["train"][0], left["train"][1] + 16
    assert train(left | dict(train=letters), network)["train_loss"] and network(x).shape == (16, 26)


def test_tracing_and_export(network, x):
    network.eval()
    with torch.no_grad():
        for other in (torch.fx.symbolic_trace(network), torch.jit.trace(network, x), torch.jit.script(network)):
            torch.testing.assert_close(other(x), network(x))
        torch.testing.assert_close(torch.export.export(network, (x,)).module()(x), network(x))


def test_monte_carlo_dropout(left, network, x):
    for layer in network.modules():
        layer.p = 0.2
    assert train(left, network)["train_loss"] and not torch.equal(network.train()(x), network(x))


def test_anomaly_detection_autocast_and_double_backward(left, network, x):
    with torch.autograd.detect_anomaly(check_nan=True):
        train(left, network)
    with torch.autocast("cpu", torch.bfloat16):
        train(left, network)
    (gradient,) = torch.autograd.grad(network.train()(x)[:, 0].sum(), network.conv1[0].weight, create_graph=True)
    gradient.square().sum().backward()
    assert network.conv2[0].weight.grad.abs().max() > 0


def test_a_network_of_another_class_trains(left, network):
    assert train(left, torch.fx.symbolic_trace(network))["train_loss"]


def test_weights_as_one_vector_lbfgs_and_pruning(left, network, x):
    assert len(parameters_to_vector(network.parameters())) == 9_768
    assert network.conv3[0].weight.view(16, -1).shape == (16, 144)

    def closure():
        (loss := F.nll_loss(network(x), left["test"][1][:16])).backward()
        return loss

    assert optim.LBFGS(network.parameters(), max_iter=1).step(closure).isfinite()
    prune.l1_unstructured(network.conv3[0], "weight", amount=0.5)
    train(left, network)
    assert (network.conv3[0].weight == 0).float().mean() >= 0.49


def test_grad_cam(network, x):
    kept = {}
    network.conv6[0].register_forward_hook(lambda _, inputs, output: kept.update(maps=output))
    network.conv6[0].register_full_backward_hook(lambda _, inputs, outputs: kept.update(gradients=outputs[0]))
    network.eval()(x)[:, 3].sum().backward()
    weights = kept["gradients"].mean((2, 3), keepdim=True)
    assert F.relu((weights * kept["maps"]).sum(1)).shape == (16, 5, 5) and weights.abs().max() > 0


def test_eager_quantization(network, x):
    wrapped = nn.Sequential(torch.ao.quantization.QuantStub(), network, torch.ao.quantization.DeQuantStub()).eval()
    wrapped.qconfig = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine)
    torch.testing.assert_close(torch.ao.quantization.prepare(wrapped)(x), network.eval()(x))


def test_temperature_scaling_of_the_notebooks_predictions(left):
    temperature = torch.ones((), requires_grad=True)
    F.cross_entropy(left["log_probabilities"] / temperature, left["test"][1]).backward()
    assert temperature.grad.isfinite()


def test_another_number_is_another_training_and_going_back_finds_the_old_one(left, tmp_path, capsys):
    (cell,) = [cell for cell in NOTEBOOK.cells if "training" in cell.metadata.get("tags", [])]
    test = left["test"][0][:100], left["test"][1][:100]
    for rate in (0.25, 0.1, 0.25):
        changed = dict(RUNS=tmp_path, LEARNING_RATE=rate, test=test)
        exec(cell.source, namespace := left | changed)
        assert namespace["history"]["learning_rate"] == [rate]
    assert capsys.readouterr().out.count("1 epochs loaded") == 1 and len(list(tmp_path.iterdir())) == 2


def test_papermill_changes_a_number(monkeypatch):
    monkeypatch.chdir(ROOT)
    changed = parameterize_notebook(load_notebook_node(str(ROOT / "A6.ipynb")), dict(EPOCHS=2, LEARNING_RATE=0.1))
    numbers = run(changed, "training")["hyperparameters"]
    assert (numbers["epochs"], numbers["learning_rate"], numbers["batch_size"]) == (2, 0.1, 128)


def test_pictures_show_and_edits_are_seen_in_any_jupyter():
    lines = {line for cell in NOTEBOOK.cells for line in cell.source.splitlines()}
    assert {"%load_ext autoreload", "%autoreload 2", "%matplotlib inline"} <= lines
