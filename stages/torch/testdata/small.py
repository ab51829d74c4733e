#!/usr/bin/env python3
"""Writes small.pth for torch_test.go: python3 small.py small.pth (PyTorch 1.13)."""
import sys
from argparse import Namespace
from collections import OrderedDict

import torch

tall = torch.arange(6.0).view(2, 3)
state = OrderedDict(
    tall=tall, flipped=tall.t(), tail=tall[1, 1:], half=torch.tensor([0.5, -0.25]).half(), long=torch.tensor([7, -9]),
    scalar=torch.tensor(3.0, dtype=torch.float64), empty=torch.zeros(0, 4), parameter=torch.nn.Parameter(torch.tensor([1.5])),
    wide={"inner": torch.tensor([0.125, 8])},
)
torch.save({
    "state_dict": state, "epoch": 3, "lr": 1e-3, "done": False, "big": 1 << 90, "hyper_parameters": Namespace(a=1, b=[1, "x", None]),
    "epoch_weights": {"bf16": torch.tensor([1, -2.5]).bfloat16()}, "optimizer_states": [{"state": {0: {"exp_avg": tall}}}],
}, sys.argv[1])
