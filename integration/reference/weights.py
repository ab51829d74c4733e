#!/usr/bin/env python3
"""Weights that go between PyTorch and flowrun, with generator.py's model in place of medicaldiffusion's.

    weights.py write DIR      writes DIR/lightning.ckpt, as Lightning would, and what PyTorch makes of it, DIR/lightning.safetensors
    weights.py resave A B     torch.saves the state dict of the safetensors file A as B
    weights.py compare A B    fails where two state dicts (.safetensors, or of torch.save) differ in a bit, taken as float32
    weights.py judges A       loads the discriminators of A, strictly, into PyTorch's own modules, and runs them

The checkpoint holds a whole module: a VQ-GAN under vqgan., with discriminators and a perceptual network, and another network beside
it; in float16, bfloat16, float32 and float64, every number of them exact in float32. Written with PyTorch 1.13.0 (Debian's python3-torch).
"""
import json
import struct
import sys

import numpy as np
import torch
from torch import nn

import generator

MODEL = {"hidden": 2, "downsample": [4, 2, 1], "embedding": 3, "codes": 10,
         "norm": "group", "groups": 2, "padding": "replicate", "decoder": "full"}
PATCH = [16, 10, 5]  # x, y, z
OURS = ("encoder.", "decoder.", "pre_vq_conv.", "post_vq_conv.", "codebook.", "image_discriminator.", "video_discriminator.")


def stored(name, t):
    """A tensor as the checkpoint has it."""
    if name == "codebook.embeddings":
        return t.double()
    if name.startswith("codebook."):
        return t.float()
    return t.bfloat16() if t.ndim == 1 else t.half()


def make(seed):
    torch.manual_seed(seed)
    x = generator.batches(PATCH)[0][0][:1]
    state = {k: stored(k, v) for k, v in generator.beginning(MODEL, x).items()}
    model = generator.Generator(MODEL).double()
    model.load_state_dict({k: v.double() for k, v in state.items()})
    with torch.no_grad():
        y, _, _, codes, margin = model(x)
    if margin < generator.MARGIN:
        raise generator.Close(f"a latent is {margin:.1e} from having another code")
    return state, {"input": x[:, 0].numpy(), "output": y[:, 0].numpy(), "codes": codes.numpy()}


def write(folder):
    for seed in range(1000):
        try:
            state, arrays = make(seed)
            break
        except generator.Close as e:
            print(f"seed {seed}: {e}", file=sys.stderr)
    whole = {"vqgan." + k: v for k, v in state.items()}
    whole |= {
        "vqgan.image_discriminator.model0.0.weight": torch.arange(24).view(2, 1, 3, 4).float(),
        "vqgan.image_discriminator.model1.1.num_batches_tracked": torch.tensor(7),
        "vqgan.video_discriminator.model0.0.weight": torch.arange(24).view(1, 1, 2, 3, 4).half(),
        "vqgan.perceptual_model.lin0.model.1.weight": torch.ones(1, 2, 1, 1),
        "denoise_fn.weight": torch.ones(2, 2),
    }
    torch.save({
        "epoch": 3, "global_step": 100, "pytorch-lightning_version": "1.6.4", "state_dict": whole,
        "optimizer_states": [{"state": {0: {"step": 100, "exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 3e-4}]}],
        "hyper_parameters": {
            "n_hiddens": MODEL["hidden"], "embedding_dim": MODEL["embedding"], "n_codes": MODEL["codes"], "num_groups": MODEL["groups"],
            "downsample": MODEL["downsample"][::-1], "norm_type": "group", "padding_type": "replicate", "lr": 3e-4,
        },
    }, f"{folder}/lightning.ckpt")
    generator.write(f"{folder}/lightning.safetensors", arrays, {"patch": json.dumps(PATCH)})
    print(f"seed {seed}")


def read(path):
    """The state dict of the model in a file, by bare names, as float32."""
    if path.endswith(".safetensors"):
        with open(path, "rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            data = f.read()
        header.pop("__metadata__", None)
        kinds = {"F16": "<f2", "F32": "<f4"}
        state = {k: torch.from_numpy(np.frombuffer(data[slice(*t["data_offsets"])], kinds[t["dtype"]]).reshape(t["shape"]).copy())
                 for k, t in header.items()}
    else:
        state = torch.load(path, map_location="cpu")
        state = state.get("state_dict", state)
    prefix = next(k for k in state if k.endswith("encoder.conv_first.conv.weight")).removesuffix("encoder.conv_first.conv.weight")
    bare = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    return {k: v.float() for k, v in bare.items() if k.startswith(OURS)}


def compare(a, b):
    a, b = read(a), read(b)
    if a.keys() != b.keys():
        sys.exit(f"only in one: {sorted(a.keys() ^ b.keys())}")
    for name in a:
        if a[name].shape != b[name].shape or not torch.equal(a[name].contiguous().view(-1).view(torch.int32), b[name].contiguous().view(-1).view(torch.int32)):
            sys.exit(f"{name} differs")
    print(f"{len(a)} tensors are the same")


def discriminator(state, dims):
    """TATS' NLayerDiscriminator with the layers, channels and norms that a state dict shows."""
    conv, batch = ((nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))[dims - 2]
    model = nn.Module()
    count = 1 + max(int(k.removeprefix("model").split(".")[0]) for k in state)
    for i in range(count):
        spectral = f"model{i}.0.weight_orig" in state
        co, ci, k = state[f"model{i}.0.weight" + ("_orig" if spectral else "")].shape[:3]
        layer = conv(ci, co, k, 2 if i < count - 2 else 1, 2)
        layers = [nn.utils.spectral_norm(layer) if spectral else layer]
        if i < count - 1:
            layers += [batch(co)] if f"model{i}.1.weight" in state else []
            layers.append(nn.LeakyReLU(0.2))
        setattr(model, f"model{i}", nn.Sequential(*layers))
    model.load_state_dict(state)
    return model.eval()


def judges(path):
    state = read(path)
    for prefix, dims in (("image_discriminator.", 2), ("video_discriminator.", 3)):
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        model = discriminator(own, dims)
        x = torch.linspace(-1, 1, 16**dims).reshape([1, 1] + [16] * dims)
        for layer in model.children():
            x = layer(x)
        if not x.isfinite().all():
            sys.exit(f"{prefix}*: logits that aren't finite")
        for name in own:
            if name.endswith("_u"):
                w, u, v = own[name[:-2] + "_orig"].flatten(1), own[name], own[name[:-2] + "_v"]
                if abs((u @ w @ v - (w.t() @ u).norm()).item()) > 1e-5:
                    sys.exit(f"{prefix}{name[:-2]}_v isn't the direction of its weight and u")
        print(f"{prefix}* {len(own)} tensors, logits {list(x.shape)}")


def main():
    torch.set_num_threads(1)
    verb, *args = sys.argv[1:]
    if verb == "write":
        write(*args)
    elif verb == "resave":
        torch.save(read(args[0]), args[1])
    elif verb == "compare":
        compare(*args)
    elif verb == "judges":
        judges(*args)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
