"""What a network does, read from one run of it: its receptive field, and what the assignment asks for.

Neither its class nor the names of its layers nor the order in which they were declared matter, only what is called on
the way from the images to what it returns.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from storage import borrowed, unwrapped


class Call(NamedTuple):
    """One call of a PyTorch function."""

    layer: str  # the innermost module that made it, by its name in the network; "" in the network's own `forward`
    function: str  # `conv2d` is what `nn.Conv2d` calls as well as `F.conv2d`
    args: tuple
    kwargs: dict
    result: object

    def argument(self, place: int, name: str, default: object = None) -> object:
        """An argument, given by its place or by its name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def inputs(self) -> list[Tensor]:
        """All tensors that it takes."""
        return _tensors([*self.args, *self.kwargs.values()])

    def outputs(self) -> list[Tensor]:
        """All tensors that it returns."""
        return _tensors([self.result])


class Recorder(TorchFunctionMode):
    """While it is active, every call of a PyTorch function by `network` is added to `calls`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.running = [""]  # the names of the modules that run, the innermost last
        self.hooks = [layer.register_forward_hook(self._leave) for layer in network.modules()]
        for name, layer in network.named_modules():
            self.hooks.append(layer.register_forward_pre_hook(partial(self._enter, name)))

    def _enter(self, name: str, *_: object) -> None:
        if not name.startswith(self.running[-1]):  # a layer in several places, named after the first of them
            name = f"{self.running[-1]}.{name.split('.')[-1]}"
        self.running.append(name)

    def _leave(self, *_: object) -> None:
        self.running.pop()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for hook in self.hooks:
            hook.remove()

    def __torch_function__(self, function: Callable, types: object, args: tuple = (), kwargs: dict | None = None):
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", str(function)).strip("_")  # relu_ is relu, in place
        changed = args[0] if name == "setitem" else result  # x[...] = y returns nothing, and changes x
        self.calls.append(Call(self.running[-1], name, args, kwargs or {}, changed))
        return result


class Run(NamedTuple):
    """What a network did with blank images [B, 1, H, W]."""

    images: Tensor
    output: object
    calls: list[Call]  # those that lead from the images to the output, in their order
    called: set[str]  # all functions, also those whose results are not used
    used: set[int]  # the `id` of every tensor that the output depends on


def record(network: nn.Module, batch: int, size: int = 28) -> Run:
    """One run of the `network` on blank images [batch, 1, size, size].

    `ValueError` where it fails, or where its calls cannot be seen, as those of a scripted network.
    """
    like = next(network.parameters(), torch.zeros(1))
    images = torch.zeros(batch, 1, size, size, device=like.device, dtype=like.dtype)
    try:
        with Recorder(network) as recorder:
            output = network(images)
    except Exception as error:
        raise ValueError(f"the network fails on images {list(images.shape)}: {error}") from error
    used, behind = _ids(_tensors([output])), []  # the calls that the output depends on, the last one first
    for call in reversed(recorder.calls):
        if used & _ids(call.outputs()):
            used |= _ids(call.inputs())
            behind.append(call)
    if isinstance(output, Tensor) and id(images) not in used:
        raise ValueError("what the network does cannot be seen; is it scripted?")
    made, calls = {id(images)}, []
    for call in reversed(behind):
        if made & _ids(call.inputs()):
            made |= _ids(call.outputs())
            calls.append(call)
    return Run(images, output, calls, {call.function for call in recorder.calls}, used)


def _tensors(values: list[object]) -> list[Tensor]:
    """The tensors among the `values`, those in lists included."""
    lists = (value if isinstance(value, list | tuple) else [value] for value in values)
    return [tensor for values in lists for tensor in values if isinstance(tensor, Tensor)]


def _ids(tensors: list[Tensor]) -> set[int]:
    return {id(tensor) for tensor in tensors}


# Receptive field ------------------------------------------------------------------------------------------------------

# Functions that make every output pixel of the same pixel of their inputs, and so leave the receptive field as it is.
# Normalization counts as one, although its mean may be that of the whole image.
POINTWISE = """
relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish hardswish hardtanh hardsigmoid softplus softsign tanh
sigmoid log_sigmoid threshold hardshrink softshrink tanhshrink softmax log_softmax
batch_norm instance_norm group_norm layer_norm local_response_norm normalize
dropout dropout1d dropout2d alpha_dropout feature_alpha_dropout feature_dropout
add sub rsub mul div rdiv neg abs pow square sqrt exp log clamp clamp_min clamp_max clip maximum minimum where
cat chunk split contiguous clone detach to type float half
""".split()
# Functions that may move channels, and leave every pixel where it is if they leave the last two sizes as they are.
REARRANGING = "view", "reshape", "unflatten", "transpose", "mean"


def receptive_field(network: nn.Module, size: int = 28) -> tuple[list[dict[str, str | int]], str]:
    """The receptive field of all that sees more than one pixel of its input, in the order in which it runs.

    Counts along one axis of a square image of `size` pixels, up to where pixels are flattened or averaged. A row is
    named after the network's child that computes it (after the layer, where the child has several), and has, with k
    kernel extent (dilation included), s stride and p padding,

        n_out = ⌊(n_in + 2p − k) / s⌋ + 1   size of the output, pixels
        r_out = r_in + (k − 1) · j_in       receptive field, pixels of the input image
        j_out = j_in · s                    jump: distance between neighboring outputs, pixels of the input image

    The text says where and why the table ends before that; it is empty otherwise.
    Source: A. Araujo et al., Computing Receptive Fields of Convolutional Neural Networks, Distill 2019,
    https://distill.pub/2019/computing-receptive-fields
    """
    with borrowed(network, training=False) as trial:
        run = record(trial, batch=2, size=size)
        containers = [name for name, layer in trial.named_modules() if not name or any(layer.children())]
    windows, ending = _windows(run)
    rows, r, n, j = [], 1, size, 1
    for call, (k, s, p) in windows:
        name = f"{call.layer}.{call.function}".strip(".") if call.layer in containers else call.layer
        row = dict(layer=name, r_in=r, n_in=n, j_in=j, k=k, s=s, p=p)
        r, n, j = r + (k - 1) * j, call.outputs()[0].shape[-1], j * s
        rows.append(row | dict(r_out=r, n_out=n, j_out=j))
    children = [row["layer"].split(".")[0] for row in rows]
    for row, child in zip(rows, children):
        if children.count(child) == 1:
            row["layer"] = child
    return rows, ending


def _windows(run: Run) -> tuple[list[tuple[Call, tuple[int, int, int]]], str]:
    """The calls through whose windows (k, s, p) the image goes, one after the other, and what ends them early."""
    found, padding = [], 0
    before, now = set(), {id(run.images)}  # the tensors behind earlier windows, and those behind the last one
    for number, call in enumerate(run.calls):
        place = f"the table ends at {call.function} in {call.layer or 'forward'}"
        inputs, x, results = _ids(call.inputs()), call.inputs()[0], call.outputs()
        if inputs & before:
            meet = len(inputs & (before | now)) > 1
            return found, f"{place}, where {'branches meet' if meet else 'another branch begins'}"
        if call.function in POINTWISE or call.function in REARRANGING and results[0].shape[-2:] == x.shape[-2:]:
            now |= _ids(results)
            continue
        window = _window(call, x.shape[-1]) if results[0].ndim == 4 else None
        if not window:
            images = [y for later in run.calls[number:] for y in later.outputs() if y.ndim > 3]
            ended = all(y.shape[-2:].numel() == 1 for y in images)
            return found, "" if ended else f"{place}, whose receptive field is not known here"
        k, s, p = window
        if call.function == "pad":
            padding += p  # counts as the next window's
        elif window != (1, 1, 0):
            found.append((call, (k, s, p + padding)))
            padding = 0
        before, now = before | now, _ids(results)
    return found, ""


def _window(call: Call, n: int) -> tuple[int, int, int] | None:
    """(kernel extent, stride, padding) of a call with n input pixels along each axis; None where it is not known."""
    (height, size), padding, dilation = call.outputs()[0].shape[-2:], 0, 1
    if call.function == "conv2d":
        kernel, stride = call.argument(1, "weight").shape[2:], call.argument(3, "stride", 1)
        padding, dilation = call.argument(4, "padding", 0), call.argument(5, "dilation", 1)
    elif call.function in ("max_pool2d", "avg_pool2d"):
        kernel = call.argument(1, "kernel_size")
        stride, padding = call.argument(2, "stride") or kernel, call.argument(3, "padding", 0)
        dilation = call.argument(4, "dilation", 1) if call.function == "max_pool2d" else 1
    elif call.function in ("adaptive_avg_pool2d", "adaptive_max_pool2d") and n % size == 0:
        kernel = stride = n // size
    elif call.function == "pad":
        kernel, stride, padding = 1, 1, call.argument(1, "pad")
    else:
        return None
    k, s, d = _side(kernel), _side(stride), _side(dilation)
    if not (k and s and d) or height != size:
        return None
    k = d * (k - 1) + 1
    p = dict(same=(k - 1) // 2, valid=0)[padding] if isinstance(padding, str) else _side(padding)
    fits = p is not None and size - ((n + 2 * p - k) // s + 1) in (0, 1)  # 1 where it is rounded up
    return (k, s, p) if fits else None


def _side(size: int | tuple[int, ...]) -> int | None:
    """A size that is the same along both axes; None where it is not."""
    sides = {size} if isinstance(size, int) else set(size)
    return sides.pop() if len(sides) == 1 else None


# The assignment -------------------------------------------------------------------------------------------------------

GOAL, BUDGET, EPOCHS = 0.994, 20_000, 20  # test accuracy to exceed; parameters and epochs to stay below


def requirements(network: nn.Module, history: dict[str, list[float]] | None = None) -> list[tuple[str, str]]:
    """What is found of each requirement of the assignment: (mark, text), the mark ✓, ✗, or – for what is optional.

    Read from a training step and a prediction of the network, which is left as it was, and from the `history` of a
    training, if any.
    Raises `ValueError` for a network that does not return [B, 10] for images [B, 1, 28, 28] or has no parameters.
    """
    run, prediction = _scores(network, training=True), _scores(network, training=False)
    parameters = _parameters(dict(unwrapped(network).named_parameters()), run, prediction)
    found = [parameters, _batch_normalization(run), _dropout(run), _head(run.calls)]
    if any(output.min() >= 0 and _sums_to_one(output) for output in (run.output, prediction.output)):
        found.append(("✗", "returns probabilities; try F.log_softmax in place of softmax, or scores"))
    if history is not None:
        if not history:
            raise ValueError("the training has not ended: run its cell again")
        final, epochs = history["test_accuracy"][-1], len(history["test_accuracy"])
        accuracy = f"test accuracy, final epoch: {final:.2%} > {GOAL:.1%}"
        found.insert(0, _checked(final > GOAL, accuracy, "the recipe of beyond.ipynb"))
        found.insert(2, _checked(epochs < EPOCHS, f"epochs: {epochs} < {EPOCHS}", "EPOCHS = 19"))
    return found


def _scores(network: nn.Module, training: bool) -> Run:
    """One run on 64 images, in training or evaluation mode; `ValueError` where it does not return [64, 10]."""
    with borrowed(network, training) as trial:
        run = record(trial, batch=64)
    returned = list(run.output.shape) if isinstance(run.output, Tensor) else type(run.output).__name__
    if returned != [64, 10]:
        raise ValueError(f"the network must return scores or log-probabilities [B, 10]; for 64 images: {returned}")
    return run


def _checked(met: bool, requirement: str, advice: str) -> tuple[str, str]:
    return ("✓", requirement) if met else ("✗", f"{requirement}; try {advice}")


def _parameters(parameters: dict[str, nn.Parameter], *runs: Run) -> tuple[str, str]:
    """Those used in any of the `runs` are counted, the others named; all that are used must be the network's."""
    inputs = [tensor for run in runs for call in run.calls for tensor in call.inputs()]
    trainable = {id(tensor) for tensor in inputs if isinstance(tensor, nn.Parameter) and tensor.requires_grad}
    if trainable - _ids(list(parameters.values())):
        return "✗", "parameters: some are used, but not registered or trained; try nn.ModuleList in place of a list"
    if not parameters:
        raise ValueError("the network has no parameters that training could change")
    used = set().union(*(run.used for run in runs))
    unused = [name for name, parameter in parameters.items() if id(parameter) not in used]
    rest = sum(parameters[name].numel() for name in unused)
    count = sum(parameter.numel() for parameter in parameters.values()) - rest
    text = f"parameters: {count:,} < {BUDGET:,}"
    if unused:
        text += f", besides {rest:,} never used ({', '.join(unused)})"
    return _checked(count < BUDGET, text, "fewer channels")


def _batch_normalization(run: Run) -> tuple[str, str]:
    if any(call.function == "batch_norm" for call in run.calls):
        return "✓", "batch normalization"
    if "batch_norm" in run.called:
        return "–", "batch normalization: called, but its result is not used"
    return "✗", "no batch normalization; try nn.BatchNorm2d behind each convolution"


def _dropout(run: Run) -> tuple[str, str]:
    """Layers and functions, and what is inside recurrent layers."""
    rates = set()
    for call in run.calls:
        if "dropout" in call.function and call.argument(2, "training", call.kwargs.get("train", True)):
            rates.add(call.argument(1, "p", 0.5))
        if call.function in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            _, _, _, _, layers, p, training, *_ = call.args
            rates.add(p if training and layers > 1 else 0)
    active = " and ".join(f"{rate:g}" for rate in sorted(rates) if rate > 0)
    if active:
        return "✓", f"dropout, p = {active}"
    if any("dropout" in call.function for call in run.calls):
        return "–", "dropout: layers present, p = 0: inactive"
    if any("dropout" in function for function in run.called):
        return "–", "dropout: called, but its result is not used"
    return "✗", "no dropout; try nn.Dropout2d(0.05)"


def _head(calls: list[Call]) -> tuple[str, str]:
    """Global average pooling makes one value of all pixels of a channel, by whatever function."""
    used = []
    for call in calls:
        x, y = call.argument(0, "input"), call.result
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            continue
        averages = call.function == "mean" or "avg_pool" in call.function
        if averages and x.shape[:2] == y.shape[:2] and x.shape[:2].numel() == y.numel() < x.numel():
            used.append("global average pooling")
        if call.function in ("linear", "matmul", "addmm") and x.ndim == 2:
            used.append("fully connected layer")
    found = " and ".join(dict.fromkeys(used)) or "neither"
    return "–", f"global average pooling or fully connected layer, optional: {found}"


# What it returns, at the end and on the way ---------------------------------------------------------------------------


def returns_log_probabilities(network: nn.Module) -> bool:
    """Whether, in training, the exponentials of what it returns sum to one, as `F.nll_loss` needs.

    Scores need `F.cross_entropy`. `ValueError` where it does not return [B, 10].
    """
    return _sums_to_one(_scores(network, training=True).output.exp())


def _sums_to_one(values: Tensor) -> bool:
    sums = values.sum(1)
    return torch.allclose(sums, torch.ones_like(sums), atol=1e-3)


@torch.no_grad()
def feature_maps(network: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The feature maps [C, H, W] of the first of some images x [B, 1, 28, 28] behind every block with a convolution.

    Blocks are the outermost modules that return feature maps; a single one is opened.
    """
    network = unwrapped(network)
    maps: dict[str, Tensor] = {}

    def keep(name: str, layer: nn.Module, inputs: tuple, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            maps[name] = output[0].clone()

    convolutional = [
        (name, layer)
        for name, layer in network.named_modules()
        if name and any(isinstance(part, nn.Conv2d) for part in layer.modules())
    ]
    hooks = [layer.register_forward_hook(partial(keep, name)) for name, layer in convolutional]
    try:
        network.eval()
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    while True:
        blocks = [name for name in maps if not any(name.startswith(f"{other}.") for other in maps)]
        if len(blocks) != 1 or len(maps) == 1:
            return {name: maps[name] for name in blocks}
        del maps[blocks[0]]
