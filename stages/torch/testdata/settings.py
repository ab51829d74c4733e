#!/usr/bin/env python3
"""Writes settings.ckpt for torch_test.go: python3 settings.py settings.ckpt (PyTorch 1.13, OmegaConf 2.4).

hyper_parameters are what Lightning's save_hyperparameters() keeps of medicaldiffusion's VQGAN(cfg)."""
import sys

import torch
from omegaconf import OmegaConf

cfg = OmegaConf.create({
    "model": {"n_hiddens": 4, "downsample": [1, 2, 4], "lr": 3e-4, "norm_type": "group", "no_random_restart": False, "resume": None},
    "dataset": {"image_channels": 1},
})
torch.save({"state_dict": {"w": torch.ones(1)}, "hyper_parameters": {"cfg": cfg}, "hparams_name": "kwargs"}, sys.argv[1])
