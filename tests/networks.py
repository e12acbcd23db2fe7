"""Networks as students write them, of other kinds than `Net`."""

import torch
import torch.nn.functional as F
from torch import nn


class Loop(nn.Module):
    """Layers in a list; `forward` asks for sizes; a hand-made activation; scores of 1 × 1 pixels at the end."""

    def __init__(self, *channels):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in zip((1, *channels), channels))
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, channels))
        self.last = nn.Conv2d(channels[-1], 10, 3)

    def forward(self, x):
        for layer, norm in zip(self.layers, self.norms):
            x = norm(layer(x))
            x = x * torch.sigmoid(x)
            if x.shape[-1] > 3:
                x = F.max_pool2d(x, kernel_size=2)
        return self.last(x).flatten(1)


class Standardized(nn.Conv2d):
    """Weight standardization."""

    def forward(self, x):
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (std + 1e-5), self.bias, self.stride, self.padding)


class Padded(nn.Module):
    """Padding as a function, one convolution used twice, layers in place, dropout that is also on in evaluation."""

    def __init__(self):
        super().__init__()
        self.first = Standardized(1, 8, 3, stride=2)
        self.twice = nn.Conv2d(8, 8, 3, padding="same", padding_mode="reflect")
        self.norm, self.relu = nn.GroupNorm(2, 8), nn.ReLU(inplace=True)
        self.dense = nn.Linear(8 * 7 * 7, 10)

    def forward(self, x):
        x = self.relu(self.norm(self.first(F.pad(x, (1, 1, 1, 1)))))
        x = F.dropout2d(self.relu(self.twice(self.relu(self.twice(x)))), 0.1)
        return torch.log_softmax(self.dense(F.avg_pool2d(x, 2).reshape(len(x), -1)), 1)


class Squeezed(nn.Module):
    """Two kernel sizes side by side, and channels weighted by their mean (squeeze and excitation)."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 6, 5, padding=2)
        self.gate = nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 12), nn.Sigmoid())
        self.out = nn.Sequential(nn.BatchNorm2d(12), nn.MaxPool2d(4), nn.Conv2d(12, 10, 1))

    def forward(self, x):
        x = F.relu(torch.cat([self.small(x), self.large(x)], 1))
        x = x * self.gate(x.mean((2, 3)))[:, :, None, None]
        return F.log_softmax(self.out(x).mean(3).mean(2), -1)


class Perceptron(nn.Module):
    """No convolution at all; a layer that is never called."""

    def __init__(self, hidden=16):
        super().__init__()
        self.forgotten = nn.Conv2d(1, 4, 3)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.out = nn.Sequential(nn.Dropout(0.2), nn.Linear(hidden, 10))

    def forward(self, x):
        return self.out(self.layers(x))


class Careless(nn.Module):
    """Results that are thrown away or only looked at; a part that is not trained; channels that are shuffled."""

    def __init__(self):
        super().__init__()
        self.backbone, self.norm, self.drop = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.3)
        self.conv = nn.Conv2d(8, 10, 3, stride=2, padding=1, padding_mode="replicate", groups=2)
        self.last = nn.Conv2d(10, 10, 6)

    def forward(self, x):
        with torch.no_grad():
            x = self.backbone(x.view(-1, 1, 28, 28))
        self.norm(x), self.drop(x)
        self.mean = x.mean()
        x = self.conv(F.relu(x)).clamp_min(0)
        x = x.view(len(x), 2, 5, 13, 13).transpose(1, 2).reshape(len(x), 10, 13, 13)
        return self.last(F.max_pool2d(x, 2)).squeeze(-1).squeeze(-1)


def factory(width):
    """An unnamed row of unnamed rows; average pooling with a stride, and a dropout of rate 0."""
    block = nn.Sequential(nn.Conv2d(1, width, 5, 2, 2), nn.PReLU(), nn.Dropout(0.0), nn.AvgPool2d(3, 2))
    return nn.Sequential(
        block, nn.Sequential(nn.Conv2d(width, 10, 3, dilation=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
