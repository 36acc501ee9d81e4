"""Training of the 9x9 model: the fused engine beside PyTorch on one device, in one run, in turns; prints a table in Markdown.

Usage: train.py DEVICE EXPORT BINARY [THREADS [STEPS [TURNS]]]   (tests/bench/train.sh calls it)

EXPORT is what `train_bench export` wrote. The network below is compared with it before anything is timed.
"""

import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

GROUPS, SIDE = 9, 9
# As in examples/train_bench.rs.
LR, BETAS, DECAY, EMA, CLIP, Q_WEIGHT = 1e-3, (0.9, 0.95), 0.3, 0.999, 1.0, 0.1


def groupings(device):
    cell = torch.arange(SIDE * SIDE, device=device)
    row, col = cell // SIDE, cell % SIDE
    return [row, col, row // 3 * 3 + col // 3]


class Block(torch.nn.Module):
    """x = rms(x + swiglu([x, sums over row, column, box of the field, sum over the cell's fields])), docs/architecture.md."""

    def __init__(self, tensors, name):
        super().__init__()
        self.up = torch.nn.Parameter(tensors[name + ".up.weight"])
        self.bias = torch.nn.Parameter(tensors[name + ".up.bias"])
        self.down = torch.nn.Parameter(tensors[name + ".down.weight"])

    def forward(self, x, sums):
        batch, _, channels = x.shape
        rows = x.view(batch, SIDE * SIDE, SIDE, channels)
        own, *columns = self.up.split(channels, 1)
        up = F.linear(rows, own, self.bias)
        # The product with a sum is made once a group, then spread over its members.
        for (gather, spread), weight in zip(sums, columns):
            total = torch.matmul(gather, rows.reshape(batch, SIDE * SIDE, SIDE * channels)).view(batch, GROUPS, SIDE, channels)
            product = F.linear(total, weight)
            up = up + torch.matmul(spread, product.view(batch, GROUPS, -1)).view(up.shape)
        cell = rows.sum(2, keepdim=True) * SIDE**-0.5
        up = up + F.linear(cell, columns[3])
        gate, value = up.chunk(2, -1)
        x = x + F.linear(F.silu(gate) * value, self.down).view(x.shape)
        return F.rms_norm(x.float(), (channels,), eps=1e-5)


class Network(torch.nn.Module):
    def __init__(self, tensors, layers=2, h_cycles=1, l_cycles=2):
        super().__init__()
        self.embed = torch.nn.Parameter(tensors["embed"])
        self.blocks = torch.nn.ModuleList(Block(tensors, f"module.0.{i}") for i in range(layers))
        self.head = torch.nn.Parameter(tensors["head.weight"])
        self.q = torch.nn.Parameter(tensors["q.weight"])
        self.q_bias = torch.nn.Parameter(tensors["q.bias"])
        self.cycles = (h_cycles, l_cycles)
        members = [F.one_hot(ids, GROUPS).float() for ids in groupings(self.embed.device)]
        self.sums = [(m.t().contiguous() / GROUPS**0.5, m.contiguous()) for m in members]

    def module(self, x):
        for block in self.blocks:
            x = block(x, self.sums)
        return x

    def forward(self, tokens, h, l):
        """One segment; all of the one H cycle carries gradient, which is the last recursion."""
        fields = torch.arange(SIDE, device=tokens.device) + 2
        kind = 2 * (tokens >= 2).long().unsqueeze(-1) - (tokens.unsqueeze(-1) == fields).long()
        x = F.embedding(kind.view(tokens.shape[0], -1), self.embed)
        for _ in range(self.cycles[0]):
            for _ in range(self.cycles[1]):
                l = self.module(l + (h + x))
            h = self.module(h + l)
        logits = F.linear(h, self.head).view(tokens.shape[0], SIDE * SIDE, SIDE)
        q = F.linear(h.mean(1), self.q, self.q_bias).squeeze(-1)
        return logits.float(), q.float(), h, l


def check(tensors):
    with torch.no_grad():
        net = Network(tensors)
        logits, q, h, l = net(tensors["inputs"].long(), tensors["before.H"], tensors["before.L"])
    found = {"logits": logits, "q_halt": q, "after.H": h, "after.L": l}
    for name, value in found.items():
        error = ((value - tensors[name]).abs().max() / tensors[name].abs().max()).item()
        if not error < 1e-4:
            sys.exit(f"{name}: the PyTorch network differs from ours by {error:.1e} of the largest value")
        print(f"{name}: largest difference {error:.1e} of the largest value", file=sys.stderr)


class Eager:
    """As the fused engine trains: AdamW, clipping, running mean of the weights, halting loss."""

    def __init__(self, tensors, bf16, compiled=False):
        self.net, self.bf16 = Network({name: value.clone() for name, value in tensors.items()}), bf16
        if compiled:
            self.net = torch.compile(self.net, fullgraph=True)
        plain = [p for name, p in self.net.named_parameters() if "bias" in name]
        rest = [p for name, p in self.net.named_parameters() if "bias" not in name]
        groups = [{"params": rest, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
        self.all = rest + plain
        self.mean = [p.detach().clone() for p in self.all]
        self.inputs, self.labels = tensors["inputs"].long(), tensors["labels"].long()
        self.h, self.l = tensors["before.H"].clone(), tensors["before.L"].clone()

    def step(self):
        with torch.autocast(self.inputs.device.type, torch.bfloat16, enabled=self.bf16):
            logits, q, h, l = self.net(self.inputs, self.h, self.l)
        right = (logits.argmax(-1) + 2 == self.labels).all(-1).float()
        loss = F.cross_entropy(logits.view(-1, SIDE), (self.labels - 2).view(-1)) + Q_WEIGHT * F.binary_cross_entropy_with_logits(q, right)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.all, CLIP)
        self.optimizer.step()
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.all], 1 - EMA)
        self.h, self.l = h.detach(), l.detach()
        return loss

    def wait(self):
        if self.inputs.is_cuda:
            torch.cuda.synchronize()

    def rate(self, steps):
        for _ in range(3):
            self.step()
        self.wait()
        begin = time.perf_counter()
        for _ in range(steps):
            loss = self.step()
        self.wait()
        rate = steps * len(self.inputs) / (time.perf_counter() - begin)
        assert torch.isfinite(loss), loss
        return rate


def main():
    device, export, binary = sys.argv[1:4]
    threads, steps, turns = (int(a) for a in (sys.argv[4:7] + ["2", "20", "3"][len(sys.argv) - 4 :]))
    torch.set_num_threads(threads)
    gpu = device != "cpu"
    tensors = {name: value.to(device) for name, value in load_file(export).items()}
    check(tensors)
    eager = {"eager PyTorch, float32": Eager(tensors, False), "eager PyTorch, bf16 autocast": Eager(tensors, True)}
    if gpu:
        eager["compiled PyTorch, bf16 autocast"] = Eager(tensors, True, compiled=True)
    own = "fused engine, bf16 products" if gpu else "fused engine, float32"
    rates = {name: [] for name in [own, *eager]}
    batch = len(tensors["inputs"])
    for _ in range(turns):
        ours = subprocess.run([binary, "time", str(threads), str(3 * steps), str(batch), device], check=True, capture_output=True, text=True)
        rates[own].append(float(ours.stdout))
        for name, engine in eager.items():
            rates[name].append(engine.rate(steps))
    best = max(rates[own])
    where = torch.cuda.get_device_name(device) if gpu else f"{threads} threads"
    print(f"PyTorch {torch.__version__}, {where}, batch {batch}, best of {turns} turns\n")
    print("| trainer | sample-segments/s | ours is faster by |\n|---|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {max(values):.1f} | {best / max(values):.2f}x |")


main()
