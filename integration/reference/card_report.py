#!/usr/bin/env python3
"""Makes tables for docs/benchmarks.md out of the results.jsonl of integration/gpu.sh, with nothing but the standard library.

    python3 integration/reference/card_report.py runs/gpu/results/results.jsonl >results.md

Where something was measured again, the last counts.
"""
import json
import sys

GIB = 2**30


def table(head, rows):
    print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for r in rows:
        print("| " + " | ".join("" if v is None else str(v) for v in r) + " |")
    print()


def figure(v):
    """Three places."""
    return None if v is None else f"{v:.0f}" if v >= 1000 else f"{v:.3g}"


def share(v, of):
    return f"{100 * v / of:.0f} %" if v and of else None


def clock(f):
    """How the ops of a bench were timed."""
    if f.get("clock") == "device":
        return "By events on the device's stream, each op from the end of the one before it;"
    return "By the host's clock, with a wait behind each;"


def gib(v):
    return f"{v / GIB:.2f}" if v else None


def main():
    with open(sys.argv[1]) as f:
        lines = [json.loads(line) for line in f if line.strip()]
    parts, one, benches, torch = {}, {}, {}, {}
    version, best = None, {}
    for e in lines:
        if "exit" in e:
            parts[e["part"]] = e
        elif e["part"] == "bench":
            benches[e["name"], e["words"], tuple(e["figures"]["patch"]), e["figures"]["batch"]] = e["figures"]
        elif e["part"] == "torch" and "ceiling" in e["torch"]:
            version, best = e["torch"]["torch"], e["torch"]["ceiling"]
        elif e["part"] == "torch":
            t = e["torch"]
            torch[t["preset"], tuple(t["patch"]), t["batch"], t["mode"], t["compiled"]] = t
        else:
            one[e["part"]] = e
    flops, moved = best.get("flops"), best.get("bytes_per_second")

    if d := one.get("devices"):
        print(f"{d['name']}; {d['version']}" + (f"; PyTorch {version}" if version else "") + ".")
        print(f"A step of the demo, from the program's start to its end: {d['cold_seconds']} s with all kernels to be compiled by the driver, {d['warm_seconds']} s with them in its cache.")
    if best:
        print(f"The device at best: {flops / 1e12:.4g} TFLOP/s in a large bfloat16 matrix product, {moved / 1e9:.4g} GB/s in a copy (PyTorch).")
    print()
    table(["part", "", "seconds"], [(p, "passed" if e["exit"] == 0 else f"FAILED ({e['exit']})", e["took"]) for p, e in parts.items()])
    if t := one.get("train"):
        print(f"{t['steps']} steps of the demo in {t['seconds']} s: mean loss at the end {t['loss']}, on the CPU {t['cpu_loss']}. "
              "The same again, and killed and gone on with: the same bits.\n")

    def peer(key, mode, compiled, field):
        return torch.get((*key, mode, compiled), {}).get(field)

    rows = []
    for (name, words, patch, batch), f in benches.items():
        key = (name, patch, batch)
        for s in f["compute"] or []:
            mode = "autoencoder" if s["name"] == "autoencoder" else "gan"
            eager, compiled = (peer(key, mode, c, "patches_per_second") for c in (False, True))
            limit = [w for w in words.split() if "memory" in w or "KERNELS" in w]
            rows.append((
                " ".join([name, "×".join(map(str, patch)), *limit]), batch, s["name"], figure(s["patches_per_second"]), figure(1e3 * s["seconds"]),
                share(s["flops"], flops), figure(eager), figure(compiled), figure(s["patches_per_second"] / eager) if eager else None,
                figure(s["patches_per_second"] / compiled) if compiled else None))
    if rows:
        clocks = {f.get("clock", "host") for f in benches.values()}
        print(f"## Steps\n\nBy the {' and the '.join(sorted(clocks))}'s clock, from the end of a step to the end of the next; PyTorch's by the host's, with a wait behind each.\n")
        table(["model, patch", "micro-batch", "phase", "patches/s", "ms", "of the product", "PyTorch eager, patches/s", "compiled", "over eager", "over compiled"], rows)

    rows = []
    for (name, words, patch, batch), f in benches.items():
        m, mode = f["memory"], "gan" if "gan" in words else "autoencoder"
        eager, compiled = (peer((name, patch, batch), mode, c, "peak_bytes") for c in (False, True))
        beside = m["gpu_used"] - m["gpu_used_before"] - m["arena"]
        rows.append((name + " " + "×".join(map(str, patch)), batch, words, gib(m["arena"]), f"{beside / 2**20:.0f}", gib(m["gpu_used_before"]), gib(m["gpu_used"]), gib(eager), gib(compiled)))
    if rows:
        print("## Memory\n\nGiB. Before: the driver's context with the kernels, and other processes.\n")
        table(["model, patch", "micro-batch", "words", "arena, as planned", "beside it, MiB", "before", "in use", "PyTorch eager, peak", "compiled"], rows)

    failures = [(" ".join(map(str, (k[0], "×".join(map(str, k[1])), k[2], k[3], "compiled" if k[4] else "eager"))), t["failed"]) for k, t in torch.items() if "failed" in t]
    if failures:
        print("PyTorch:\n")
        table(["case", "failed"], failures)

    for (name, words, patch, batch), f in benches.items():
        if not f["ops"]:
            continue
        print(f"## Kernels: {name}, {'×'.join(map(str, patch))}, micro-batch {batch} {words}\n")
        own = f["ceiling"]
        print(f"{clock(f)} {figure(own['flops'] / 1e12)} TFLOP/s in a lone convolution, {figure(own['bytes_per_second'] / 1e9)} GB/s in a lone sum.\n")
        rows = [(o["kind"], o["calls"], f"{100 * o['share']:.1f} %", figure(1e3 * o["seconds"]), figure(o["flops"] / 1e12) if o["flops"] else None,
                 share(o["flops"], flops), figure(o["bytes_per_second"] / 1e9), share(o["bytes_per_second"], moved)) for o in f["ops"]]
        table(["op", "calls", "of time", "ms", "TFLOP/s", "of the product", "GB/s", "of the copy"], rows)

    for (name, words, patch, batch), f in list(benches.items())[:1]:
        print(f"## The longest ops: {name}, {'×'.join(map(str, patch))}, micro-batch {batch} {words}\n")
        longest = sorted(f["layers"] or [], key=lambda o: -o["seconds"])[:40]
        table(["op", "of", "of time", "ms", "of the product", "of the copy"],
              [(o["kind"], o["name"], f"{100 * o['share']:.1f} %", figure(1e3 * o["seconds"]), share(o["flops"], flops), share(o["bytes_per_second"], moved)) for o in longest])

    rows = []
    for (name, words, patch, batch), f in benches.items():
        if f["both"] and f["data"]:
            rows.append((name + " " + "×".join(map(str, patch)), batch, words, figure(f["data"]["patches_per_second"]), figure(f["both"]["patches_per_second"]),
                         f["both"]["bound_by"], f"{100 * f['of_slower']:.0f} % of {f.get('slower')}"))
    if rows:
        print("## The whole graph\n")
        table(["model, patch", "micro-batch", "words", "data alone, patches/s", "both, patches/s", "bound by", "of the slower half"], rows)

    if w := one.get("whole"):
        c = (w["figures"]["compute"] or [{}])[0]
        print(f"## A whole volume\n\n{'×'.join(map(str, w['size']))} from .nii.gz to .nii.gz in {w['seconds']} s; the model alone does {figure(c.get('patches_per_second'))} patches/s.\n")
        rows = [(" ".join([k[0], "×".join(map(str, k[1])), "compiled" if k[4] else "eager"]), figure(t.get("patches_per_second"))) for k, t in torch.items() if k[3] == "reconstruct"]
        if rows:
            table(["PyTorch, forward", "patches/s"], rows)


if __name__ == "__main__":
    main()
