"""What 1, 8 and 64 GPUs need and send, on paper: the tables of docs/scale.md. Nothing here is measured.

    python benchmarks/scale.py

Bytes follow from what the code holds and sends: float32 weights, gradients and two moments of what trains, float32 copies for a
reference, layers put together in 16 bits, embeddings and head in 32. Speeds are assumptions, and are printed with the tables.
"""

from __future__ import annotations

from dataclasses import dataclass

GPU = 139 * 2**30  # bytes of one H200
RATE = 0.5 * 989e12  # FLOP/s that packed rows are assumed to reach: half of the nominal dense 16-bit rate
LINK = {1: float("inf"), 8: 450e9, 64: 50e9}  # bytes/s of one GPU in one direction: inside a machine, and between machines
TOKENS = 16384  # of a pack
SCORED = 0.5  #  share of the tokens that belong to responses: the head runs there only


@dataclass(frozen=True)
class Shape:
    """A decoder: width d, keys and values k, feed-forward f."""

    name: str
    layers: int
    d: int
    k: int
    f: int
    vocabulary: int

    @property
    def layer(self) -> int:
        """Weights of one layer."""
        return 2 * self.d**2 + 2 * self.d * self.k + 3 * self.d * self.f

    @property
    def body(self) -> int:
        return self.layers * self.layer

    @property
    def root(self) -> int:
        """Embeddings and head."""
        return 2 * self.vocabulary * self.d

    def adapter(self, r: int = 16) -> int:
        """Weights of an adapter of rank r on every linear layer."""
        return self.layers * r * (9 * self.d + 2 * self.k + 3 * self.f)

    def kept(self, stream: int) -> int:
        """Bytes that a token leaves in one layer for the backward pass: 16-bit inputs of the products, `stream` bytes a number between."""
        return 2 * (4 * self.d + 2 * self.k + 3 * self.f) + 2 * stream * self.d


SHAPES = (Shape("7B", 28, 3584, 512, 18944, 152064), Shape("70B", 80, 8192, 1024, 28672, 128256))


@dataclass(frozen=True)
class Plan:
    """One way to train a shape on some GPUs."""

    shape: Shape
    gpus: int
    lora: bool
    shards: bool
    checkpointing: bool

    def names(self) -> list[str]:
        return [self.shape.name, "LoRA" if self.lora else "all", str(self.gpus)]

    def memory(self) -> dict[str, float]:
        """Bytes of one GPU."""
        s, parts = self.shape, self.gpus if self.shards else 1
        stream = 2 if self.lora else 4  # bytes of a number between the layers
        trained = s.adapter() if self.lora else s.body + s.root
        base = 2 * (s.body + s.root) if self.lora else 0 if self.shards else 2 * s.body  # autocast keeps 16-bit weights of a pass
        held = 16 * trained + 4 * trained  # weights, gradient, two moments; the reference's copy
        units = 0
        if self.shards:
            units = 2 * 2 * s.layer + (0 if self.lora else (2 + 4) * s.layer)  # two layers; one's gradient, in 16 bits and to be sent
            units += 2 * s.root if self.lora else (4 + 4) * s.root  # embeddings and head; their gradient
        tokens = s.layers * stream * s.d + s.kept(stream) if self.checkpointing else s.layers * s.kept(stream)
        head = 2 * s.root / 2  # its 16-bit weights
        return {"states": (base + held) / parts, "units": units + head, "activations": TOKENS * tokens}

    def seconds(self) -> tuple[float, float]:
        """Of one pack, computing and sending; without shards the gradient is sent once a step, here shown as if a step were one pack."""
        s, others = self.shape, (self.gpus - 1) / self.gpus
        work = (4 if self.lora else 6) + 2 * self.checkpointing
        flops = TOKENS * (work * s.body + (4 if self.lora else 6) * SCORED * s.root / 2)
        if self.shards:
            sent = 4 * s.body + 2 * s.root if self.lora else 8 * s.body + 8 * s.root
        else:
            sent = 2 * 4 * (s.adapter() if self.lora else s.body + s.root)
        return flops / RATE, others * sent / LINK[self.gpus]


PLANS = [
    *(Plan(SHAPES[0], gpus, True, False, False) for gpus in (1, 8, 64)),
    Plan(SHAPES[0], 1, False, False, True),
    *(Plan(SHAPES[0], gpus, False, True, False) for gpus in (8, 64)),
    Plan(SHAPES[1], 8, True, True, True),
    Plan(SHAPES[1], 8, False, True, True),
    Plan(SHAPES[1], 64, False, True, True),
]


def main() -> None:
    """Print both tables as Markdown."""
    rate, links = f"{RATE / 1e12:.0f} TFLOP/s", ", ".join(f"{speed / 1e9:.0f} GB/s on {n}" for n, speed in LINK.items() if n > 1)
    print(f"assumed: {TOKENS} tokens a pack, {SCORED:.0%} of them scored, {rate} a GPU, {links} GPUs, {GPU / 1e9:.0f} GB a GPU\n")
    rows = []
    for plan in PLANS:
        memory = plan.memory()
        total = sum(memory.values())
        how = ["in shards" if plan.shards else "whole", "yes" if plan.checkpointing else "no"]
        rows.append([*plan.names(), *how, *(f"{part / 1e9:.1f}" for part in (*memory.values(), total)), "yes" if total < GPU else "no"])
    table("model, trains, GPUs, weights, checkpointing, states, units, activations, GB a GPU, fits", rows)
    rows = []
    for plan in PLANS:
        if sum(plan.memory().values()) < GPU:
            work, sending = plan.seconds()
            speeds = (plan.gpus * TOKENS / seconds for seconds in (max(work, sending), work + sending))
            rows.append([*plan.names(), f"{work:.2f}", f"{sending:.3f}", *(f"{speed:,.0f}" for speed in speeds)])
    table("model, trains, GPUs, computing s, sending s, tokens/s if hidden, tokens/s if not", rows)


def table(names: str, rows: list[list[str]]) -> None:
    """As Markdown."""
    for row in (names.split(", "), ["---"] * len(names.split(", ")), *rows):
        print(f"| {' | '.join(row)} |")
    print()


if __name__ == "__main__":
    main()
