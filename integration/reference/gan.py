#!/usr/bin/env python3
"""Writes gpu/vqgan/testdata/parity-gan-*.safetensors: what PyTorch makes of the whole GAN, for gpu/vqgan/gan_parity_test.go.

    python3 integration/reference/gan.py gpu/vqgan/testdata

The generator and the form of the fixtures are generator.py's. To them come discriminators by the names of TATS, ten forced steps instead of
three, and where each step cuts its slices (places.*). Generator and discriminators take their steps from the same reconstruction.
"""
import json
import sys

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import generator
from generator import Close, Run, change, probes

generator.STEPS = STEPS = [1, 2, 3, 4, 5, 6, 9, 16, 100, 300]
FREE, FREE_LR = 10, 2e-5  # more of it is chaotic
WEIGHTS = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]  # MS-SSIM's exponents
MARGIN, KINK = 5e-5, 1e-6  # generator.py's, for many more steps
LECAM_DECAY, NUDGE, LEAK, MOMENTUM = 0.99, 0.01, 0.2, 0.1

MODEL = {"hidden": 4, "downsample": [4, 4, 2], "embedding": 4, "codes": 12, "norm": "channel", "groups": 4, "padding": "replicate", "decoder": "lean"}
BASE = {
    "weight": 1, "start": 0, "ramp": 8, "loss": "hinge", "image": 1, "volume": 1, "planes": ["z"], "slices": 1, "channels": 4, "layers": 2,
    "norm": "none", "lr": 1, "beta1": 0.5, "beta2": 0.9, "features": 4, "adaptive": 0, "lecam": 0, "r1": 0, "r1_every": 16,
}
VARIANTS = {
    "hinge": {"patch": [12, 12, 12], "ssim": 0.5, "gan": {**BASE, "adaptive": 5, "image": 0.5, "planes": ["z", "y"]}},
    "batch": {"patch": [12, 8, 6], "ssim": 0, "gan": {**BASE, "loss": "vanilla", "norm": "batch", "planes": ["x", "y", "z"], "slices": 2,
                                                        "lecam": 0.3, "features": 1, "lr": 0.5}},
    "spectral": {"patch": [12, 8, 6], "ssim": 0, "gan": {**BASE, "loss": "squares", "norm": "spectral", "r1": 200, "r1_every": 2, "weight": 0.8,
                                                           "features": 0, "beta1": 0, "beta2": 0.99}},
}


class Layer(nn.Module):
    """A convolution k4 with a margin of 2 zeros, in 2D or 3D, with spectral norm or without."""

    def __init__(self, ci, co, dims, stride, spectral):
        super().__init__()
        conv = (nn.Conv2d if dims == 2 else nn.Conv3d)(ci, co, 4)
        self.run, self.stride, self.bias = (F.conv2d if dims == 2 else F.conv3d), stride, conv.bias
        if spectral:
            self.weight_orig = nn.Parameter(conv.weight.detach().clone())
            self.register_buffer("weight_u", F.normalize(torch.randn(co), dim=0))
        else:
            self.weight = conv.weight
        self.scaled = None

    def prepare(self):
        """One power iteration, once a step."""
        if not hasattr(self, "weight_orig"):
            self.scaled = self.weight
            return
        w = self.weight_orig.flatten(1)
        with torch.no_grad():
            v = F.normalize(w.t() @ self.weight_u, dim=0, eps=1e-12)
            self.weight_u.copy_(F.normalize(w @ v, dim=0, eps=1e-12))
        self.scaled = self.weight_orig / (self.weight_u.clone() @ w @ v)

    def forward(self, x):
        return self.run(x, self.scaled, self.bias, self.stride, 2)


class Discriminator(nn.Module):
    def __init__(self, c, dims):
        super().__init__()
        spectral, batch = c["norm"] == "spectral", {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[dims]
        ci, co = 1, c["channels"]
        for i in range(c["layers"] + 1):
            layers = [Layer(ci, co, dims, 1 if i == c["layers"] else 2, spectral)]
            if i > 0 and c["norm"] == "batch":
                layers.append(batch(co))
            setattr(self, f"model{i}", nn.Sequential(*layers))
            ci, co = co, min(2 * co, 512)
        setattr(self, f"model{c['layers'] + 1}", nn.Sequential(Layer(ci, 1, dims, 1, spectral)))
        self.layers = c["layers"]

    def prepare(self):
        for m in self.modules():
            if isinstance(m, Layer):
                m.prepare()

    def forward(self, x):
        """Returns logits and features."""
        features = []
        for i in range(self.layers + 1):
            x = F.leaky_relu(getattr(self, f"model{i}")(x), LEAK)
            features.append(x)
        return getattr(self, f"model{self.layers + 1}")(x), features


def cut(x, plane, at):
    """Slices at [n·k] of x [n, 1, D, H, W] across an axis."""
    k, axis = len(at) // len(x), {"z": 1, "y": 2, "x": 3}[plane]
    return torch.stack([x[i // k].select(axis, int(a)) for i, a in enumerate(at)])


LOSSES = {  # of scans, of reconstructions, of the generator
    "hinge": (lambda l: F.relu(1 - l), lambda l: F.relu(1 + l), lambda l: -l),
    "vanilla": (lambda l: F.softplus(-l), F.softplus, lambda l: F.softplus(-l)),
    "squares": (lambda l: (l - 1) ** 2, lambda l: l**2, lambda l: (l - 1) ** 2),
}


def ms_ssim(y, t):
    """Multi-scale SSIM of [n, 1, D, H, W] with intensities in [-1, 1], over windows that lie inside; the mean over samples."""
    i = torch.arange(11).double() - 5
    window = torch.exp(-i.square() / (2 * 1.5**2))
    window = window / window.sum()

    def blur(v):
        for axis in range(3):
            shape = [1, 1, 1, 1, 1]
            shape[2 + axis] = 11
            v = F.conv3d(v, window.view(shape))
        return v

    count = next(n for n in range(5, 0, -1) if min(y.shape[2:]) >> (n - 1) >= 11)
    exponents = torch.tensor(WEIGHTS[:count]).double()
    exponents = exponents / exponents.sum()
    c1, c2 = 0.02**2, 0.06**2
    out = 1
    for j, e in enumerate(exponents):
        a, b = blur(y), blur(t)
        aa, bb, ab = blur(y * y) - a * a, blur(t * t) - b * b, blur(y * t) - a * b
        s = (2 * ab + c2) / (aa + bb + c2)
        if j == count - 1:
            s = s * (2 * a * b + c1) / (a * a + b * b + c1)
        out = out * s.mean((1, 2, 3, 4)).clamp(min=1e-6) ** e
        y, t = F.avg_pool3d(y, 2), F.avg_pool3d(t, 2)
    return out.mean()


class GAN(Run):
    """A generator and its discriminators, with their optimisers."""

    def __init__(self, variant, start, judges, lr):
        super().__init__(MODEL, start, lr)
        self.c, self.ssim = variant["gan"], variant["ssim"]
        self.judges = nn.ModuleDict({"image_discriminator": Discriminator(self.c, 2), "video_discriminator": Discriminator(self.c, 3)}).double()
        self.judges.load_state_dict(judges)
        self.judge_adam = torch.optim.Adam(self.judges.parameters(), lr * self.c["lr"], (self.c["beta1"], self.c["beta2"]))
        self.anchors = torch.zeros(4).double()
        self.judged = 0

    def forced(self, k):
        super().forced(k)
        with torch.no_grad():
            for p in self.judges.parameters():
                last = p.flatten().flip(0).view_as(p)
                self.judge_adam.state[p] = {"step": torch.tensor(STEPS[k] - 1.0), "exp_avg": last * k / 64, "exp_avg_sq": (last * k / 32).square()}
            for name, t in self.judges.state_dict().items():
                if not name.endswith(("weight_u", "num_batches_tracked")):
                    t.mul_((16 - k) / 16)
        self.judged = STEPS[k] - 1
        self.anchors = torch.tensor([0.25, -0.5, 0.125, 0.0625]).double() * k

    def step(self, x, target, places):
        c = self.c
        y, z, q, codes, margin = self.model(x)
        if margin < MARGIN:
            raise Close(f"a latent is {margin:.1e} from having another code")
        if (kink := (y - target).abs().min().item()) < KINK:
            raise Close(f"a voxel is {kink:.1e} from its target")
        for judge in self.judges.values():
            judge.prepare()
        real, fake, deceive = LOSSES[c["loss"]]
        ramp = min(1, (self.steps + 1) / c["ramp"])
        regularise = c["r1"] > 0 and (self.steps + 1) % c["r1_every"] == 0
        generator_loss = features = judge_loss = lecam = slope = r1 = 0
        logits = torch.zeros(4).double()
        views = [("image_discriminator", 0, c["image"] / len(c["planes"]), 1 / len(c["planes"]), lambda v, p=p, i=i: cut(v, p, places[i]))
                 for i, p in enumerate(c["planes"])]
        views.append(("video_discriminator", 2, c["volume"], 1, lambda v: v))
        for name, at, share, part, view in views:
            judge, scan = self.judges[name], view(target)
            on_real, features_of_real = judge(scan)
            on_fake, features_of_fake = judge(view(y))
            judge_loss = judge_loss + share / 2 * (real(on_real).mean() + fake(on_fake).mean())
            lecam = lecam + share / 2 * (F.relu(on_real - self.anchors[at + 1]).square().mean() + F.relu(self.anchors[at] - on_fake).square().mean())
            generator_loss = generator_loss + share * deceive(on_fake).mean()
            features = features + share * sum((f - g.detach()).abs().mean() for f, g in zip(features_of_fake, features_of_real))
            logits[at] += part * on_real.mean().item()
            logits[at + 1] += part * on_fake.mean().item()
            if regularise:
                leaf = scan.clone().requires_grad_()
                g = torch.autograd.grad(judge(leaf)[0].flatten(1).mean(1).sum(), leaf)[0]
                size, h = g.norm(), NUDGE * g.numel() ** 0.5
                along = (judge(scan + h * g / size)[0].mean() - judge(scan - h * g / size)[0].mean()) / (2 * h)
                slope = slope + share * c["r1"] * c["r1_every"] * size * along
                r1 = r1 + share * size.item() ** 2 / len(x)

        l1, l2, commitment = (y - target).abs().mean(), (y - target).square().mean(), (z - q.detach()).square().mean()
        loss = generator.OPTIONS["loss"]
        dissimilar = 1 - ms_ssim(y, target) if self.ssim > 0 else torch.zeros(()).double()
        own = loss["l1"] * l1 + loss["l2"] * l2 + self.ssim * dissimilar
        adversarial, weight = generator_loss + c["features"] * features, 1.0
        if c["adaptive"] > 0:
            last = self.model.decoder.conv_last.conv.weight
            a, b = (torch.autograd.grad(v, last, retain_graph=True)[0].norm().item() for v in (own, adversarial))
            weight = min(a / (b + 1e-4), c["adaptive"])
        total = own + loss["commitment"] * commitment + c["weight"] * ramp * weight * adversarial
        names, params = zip(*self.model.named_parameters())
        gradient = dict(zip(names, torch.autograd.grad(total, params, retain_graph=True)))
        names, params = zip(*self.judges.named_parameters())
        judge_gradient = dict(zip(names, torch.autograd.grad(judge_loss + c["lecam"] * lecam + slope, params)))
        for model, gradients in ((self.model, gradient), (self.judges, judge_gradient)):
            for k, p in model.named_parameters():
                p.grad = gradients[k].clone()
        size = nn.utils.clip_grad_norm_(self.model.parameters(), generator.OPTIONS["clip"])
        judge_size = nn.utils.clip_grad_norm_(self.judges.parameters(), generator.OPTIONS["clip"])
        self.adam.step()
        self.judge_adam.step()
        self.steps += 1
        self.judged += 1
        self.anchors = logits if self.judged == 1 else LECAM_DECAY * self.anchors + (1 - LECAM_DECAY) * logits
        decay = min(generator.OPTIONS["ema"], (1 + self.steps) / (10 + self.steps))
        for k, p in self.model.named_parameters():
            self.average[k] = decay * self.average[k] + (1 - decay) * p.detach()
        self.model.codebook.update(z.detach(), codes, generator.OPTIONS["codebook"]["decay"])
        share = torch.bincount(codes.flatten()).double() / codes.numel()
        perplexity = torch.exp(-torch.special.xlogy(share, share).sum())
        clipped = (y.clamp(-1, 1) - target.clamp(-1, 1)).square().mean()
        said = [l1, l2, clipped, commitment, total, size, perplexity, dissimilar, generator_loss, judge_loss + c["lecam"] * lecam, features, r1, weight,
                judge_size, logits[[0, 2]].mean(), logits[[1, 3]].mean()]
        return {"losses": torch.tensor([float(s) for s in said]).double(), "gradient": gradient, "judge_gradient": judge_gradient}

    def judge_moments(self, name):
        return {k: self.judge_adam.state[p][name].clone() for k, p in self.judges.named_parameters()}

    def judge_weights(self):
        return {k: p.detach().clone() for k, p in self.judges.named_parameters()}

    def buffers(self):
        return {k: t.clone() for k, t in self.judges.state_dict().items() if k.endswith(("running_mean", "running_var", "weight_u"))}


def beginning(c):
    """Discriminators as they start, norms not as plain as that; exact in float16."""
    judges = nn.ModuleDict({"image_discriminator": Discriminator(c, 2), "video_discriminator": Discriminator(c, 3)}).double()
    with torch.no_grad():
        for name, t in judges.state_dict().items():
            if ".1." in name and t.is_floating_point():
                t.add_(0.2 * torch.rand_like(t))
            if t.is_floating_point():
                t.copy_(t.half())
    return judges.state_dict()


def fixture(variant, seed):
    torch.manual_seed(seed)
    c, patch, n = variant["gan"], variant["patch"], generator.OPTIONS["batch"]
    generator.STEPS = [0] * 3
    inputs, targets = generator.batches(patch)
    generator.STEPS = STEPS
    start, judges = generator.beginning(MODEL, inputs[0]), beginning(c)
    tensors = {k: v.numpy().astype("<f2") for k, v in {**start, **judges}.items() if not k.endswith("num_batches_tracked")}
    tensors["input"], tensors["target"] = (t.squeeze(2).numpy().astype("<f2") for t in (inputs, targets))
    tensors["forced.step"] = np.array(STEPS, "<i4")
    tensors["forced.lr"], tensors["free.lr"] = np.full(len(STEPS), generator.FORCED_LR), np.full(FREE, FREE_LR)
    sizes = {"x": patch[0], "y": patch[1], "z": patch[2]}
    places = torch.stack([torch.randint(sizes[p], (len(STEPS), n * c["slices"])) for p in c["planes"]], 1)
    tensors["places"] = places.numpy().astype("<i4")

    rows = []
    for k in range(len(STEPS)):
        run = GAN(variant, start, judges, generator.FORCED_LR)
        run.forced(k)
        weights = run.judge_weights()
        said = run.step(inputs[k % 3], targets[k % 3], places[k])
        rows.append({
            "losses": said["losses"], "gradient": probes(said["gradient"]), "judge.gradient": probes(said["judge_gradient"]),
            "judge.first": probes(run.judge_moments("exp_avg")), "judge.second": probes(run.judge_moments("exp_avg_sq")),
            "judge.change": probes(change(run.judge_weights(), weights)), "anchors": run.anchors,
            **{"buffers." + name: v for name, v in run.buffers().items()},
        })
    for key in rows[0]:
        tensors["forced." + key] = np.stack([r[key] for r in rows])

    run = GAN(variant, start, judges, FREE_LR)
    weights, own = run.weights(), run.judge_weights()
    losses = [run.step(inputs[i % 3], targets[i % 3], places[i])["losses"] for i in range(FREE)]
    tensors["free.losses"] = np.stack(losses)
    tensors["free.change"], tensors["free.judge.change"] = probes(change(run.weights(), weights)), probes(change(run.judge_weights(), own))
    return tensors


def main():
    torch.set_num_threads(1)
    for name, variant in VARIANTS.items():
        for seed in range(1000):
            try:
                tensors = fixture(variant, seed)
                break
            except Close as e:
                print(f"{name}: seed {seed}: {e}", file=sys.stderr)
        else:
            sys.exit(f"{name}: no seed keeps its distance")
        gan = {k.replace("_", ""): v for k, v in variant["gan"].items()}  # Go's names
        options = {**generator.OPTIONS, "patch": variant["patch"], "gan": gan}
        options["loss"] = {**options["loss"], "ssim": variant["ssim"]}
        generator.write(f"{sys.argv[1]}/parity-gan-{name}.safetensors", tensors, {"model": json.dumps(MODEL), "options": json.dumps(options)})
        np.set_printoptions(precision=4, suppress=True, linewidth=180)
        print(f"{name}: seed {seed}\n{tensors['forced.losses']}\n{tensors['free.losses']}")


if __name__ == "__main__":
    main()
