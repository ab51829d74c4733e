#!/usr/bin/env python3
"""Writes gpu/vqgan/testdata/lpips.safetensors: what PyTorch makes of LPIPS over VGG16, for gpu/vqgan/perceptual_test.go.

    lpips.py fixture FILE     writes the fixture
    lpips.py weights DIR      writes DIR/vgg16.pth and DIR/vgg.pth as torchvision and lpips have them, and DIR/lpips.pth, both in one as
                              the package's state dict has them; with weights by the same formula

This is our own description of the network in PyTorch's ops, in float64, of its real size: so that nothing has to be stored, weights
are hashes of their places (weights below). A fixture holds, float16 or float32,

    input, target        n patches;
    places.x, .y, .z     which slices of each patch are compared;
    features             probes (generator.py's) of what each convolution makes of the input's slices across z, behind its ReLU;
    distances            of each plane, by layer: the mean over its slices;
    gradient             of the mean of the planes' distances with respect to the input.

Rounding doesn't decide which way the gradient goes: no ReLU's input is near 0 and no two voxels of a max-pool are near each other
(MARGIN, as a share of the layer's root mean square), or the next seed is tried.

Written with PyTorch 1.13.0 and NumPy 1.24.2 (Debian's python3-torch).
"""
import sys

import numpy as np
import torch
import torch.nn.functional as F

import generator

PATCH, PATCHES = [24, 20, 16], 2  # x, y, z
SLICES = {"x": 2, "y": 1, "z": 1}
MARGIN = 4e-6
STAGES = [[(0, 64), (2, 64)], [(5, 128), (7, 128)], [(10, 256), (12, 256), (14, 256)], [(17, 512), (19, 512), (21, 512)],
          [(24, 512), (26, 512), (28, 512)]]
SHIFT, SCALE = [-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]


def hashed(seed, n):
    """n numbers in [0, 1), of 24 bits."""
    h = np.arange(n, dtype=np.uint32) * np.uint32(0x9E3779B1) + np.uint32(seed * 0x85EBCA6B & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        h = (h ^ h >> np.uint32(shift)) * np.uint32(factor)
    return (h ^ h >> np.uint32(16)) >> np.uint32(8)


def weights():
    """The state dict, by torchvision's names: U(±√(6/fan_in)), biases U(±0.1), heads U(0, 1); each tensor's seed is its place."""
    state, ci = {}, 3

    def add(name, shape, scale, offset):
        u = hashed(len(state), int(np.prod(shape))) / 2**24
        state[name] = torch.from_numpy(((u - offset) * scale).astype(np.float32).reshape(shape))

    for stage, layers in enumerate(STAGES):
        for at, co in layers:
            add(f"features.{at}.weight", (co, ci, 3, 3), 2 * np.sqrt(6 / (ci * 9)), 0.5)
            add(f"features.{at}.bias", (co,), 0.2, 0.5)
            ci = co
        add(f"lin{stage}.model.1.weight", (1, ci, 1, 1), 1, 0)
    return state


def apart(x, pooled):
    """Fails where a ReLU's input x could round to the other side, or the pool behind it choose another voxel."""
    size = x.detach().square().mean().sqrt()
    if (near := (x.abs().min() / size).item()) < MARGIN:
        raise generator.Close(f"a ReLU's input is {near:.1e}")
    if pooled:
        h, w = x.shape[2] // 2 * 2, x.shape[3] // 2 * 2
        two = F.unfold(F.relu(x.detach())[:, :, :h, :w].flatten(0, 1)[:, None], 2, stride=2).topk(2, 1).values
        if (near := ((two[:, 0] - two[:, 1])[two[:, 0] > 0].min() / size).item()) < MARGIN:
            raise generator.Close(f"two voxels of a pool are {near:.1e} apart")


def features(state, x, clear=False):
    """Outputs of all ReLUs, by stage, of images [n, 1, H, W] in [-1, 1]."""
    shift, scale = (torch.tensor(v).double().view(1, 3, 1, 1) for v in (SHIFT, SCALE))
    x, out = (x - shift) / scale, []
    for stage, layers in enumerate(STAGES):
        x = F.max_pool2d(x, 2) if stage > 0 else x
        out.append([])
        for at, _ in layers:
            x = F.conv2d(x, state[f"features.{at}.weight"], state[f"features.{at}.bias"], padding=1)
            if clear:
                apart(x, at == layers[-1][0] and stage + 1 < len(STAGES))
            x = F.relu(x)
            out[-1].append(x)
    return out


def distance(state, x, y):
    """LPIPS by layer, the mean over images."""
    def unit(f):
        return f / (f.square().sum(1, keepdim=True).sqrt() + 1e-10)

    pairs = zip(features(state, x, True), features(state, y))
    return torch.stack([F.conv2d((unit(a[-1]) - unit(b[-1])).square(), state[f"lin{i}.model.1.weight"]).mean() for i, (a, b) in enumerate(pairs)])


def cut(v, plane, places):
    axis = {"z": 0, "y": 1, "x": 2}[plane]
    return torch.stack([v[i].select(axis, int(at)) for i, row in enumerate(places) for at in row])[:, None]


def make(seed):
    torch.manual_seed(seed)
    state = {k: v.double() for k, v in weights().items()}
    z, y, x = torch.meshgrid(*(torch.arange(n).double() for n in reversed(PATCH)), indexing="ij")
    target = torch.stack([torch.sin(0.3 * x + i) * torch.cos(0.4 * y - 0.2 * z) + 0.1 * torch.randn(x.shape) for i in range(PATCHES)]).half().double()
    image = (0.8 * target + 0.1 * torch.randn(target.shape)).half().double().requires_grad_()
    places = {p: torch.stack([torch.randperm(PATCH["xyz".index(p)])[:n].sort().values for _ in range(PATCHES)]) for p, n in SLICES.items()}
    by_plane = torch.stack([distance(state, cut(image, p, at), cut(target, p, at)) for p, at in places.items()])
    gradient = torch.autograd.grad(by_plane.sum() / len(places), image)[0]
    seen = features(state, cut(image.detach(), "z", places["z"]))
    tensors = {"input": image.detach().numpy().astype("<f2"), "target": target.numpy().astype("<f2"), "gradient": gradient.numpy(),
               "distances": by_plane.detach().numpy(),
               "features": np.concatenate([generator.probes({"": f}) for stage in seen for f in stage])}
    tensors |= {f"places.{p}": at.numpy().astype("<i4") for p, at in places.items()}
    return tensors


def fixture(path):
    for seed in range(1000):
        try:
            tensors = make(seed)
            break
        except generator.Close as e:
            print(f"seed {seed}: {e}", file=sys.stderr)
    generator.write(path, tensors, {})
    print(f"seed {seed}\n{tensors['distances']}")


def write(folder):
    state = weights()
    net = {k: v for k, v in state.items() if k.startswith("features.")}
    torch.save({**net, "classifier.0.weight": torch.ones(2, 2)}, f"{folder}/vgg16.pth", _use_new_zipfile_serialization=False)  # as old as torchvision's
    torch.save({k: v for k, v in state.items() if k.startswith("lin")}, f"{folder}/vgg.pth")
    whole = {"scaling_layer.shift": torch.tensor(SHIFT).view(1, 3, 1, 1), "scaling_layer.scale": torch.tensor(SCALE).view(1, 3, 1, 1)}
    for stage, layers in enumerate(STAGES):
        for at, _ in layers:
            for kind in ("weight", "bias"):
                whole[f"net.slice{stage + 1}.{at}.{kind}"] = state[f"features.{at}.{kind}"]
        for head in (f"lin{stage}", f"lins.{stage}"):
            whole[f"{head}.model.1.weight"] = state[f"lin{stage}.model.1.weight"]
    torch.save(whole, f"{folder}/lpips.pth")


def main():
    torch.set_num_threads(1)
    {"fixture": fixture, "weights": write}[sys.argv[1]](sys.argv[2])


if __name__ == "__main__":
    main()
