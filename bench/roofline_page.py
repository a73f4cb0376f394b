"""What each way of fusing attention must move and compute at every site, and the least time for it on four GPUs.

Nothing is run. A way is a sequence of kernels; a kernel takes at least the longest of its bytes over the memory's rate,
its matrix operations over the tensor cores' and its exponentials over the special function units'; a way takes their
sum. Operands are read once (caches are ideal), in fp16. Matrix instructions are counted in code compiled for each GPU
(`bench.aot`). `python -m bench.roofline` prints the page and writes it.
"""

from dataclasses import dataclass
from pathlib import Path

from bench.sites import BenchSite, sites
from fz.errors import FzError

PAGE = Path(__file__).parent / "ROOFLINE.md"
HALF = 2  # bytes of an fp16 number
# results of exp2 a clock and multiprocessor (CUDA C++ programming guide, arithmetic throughput, 8.0 to 9.0)
EXPONENTIALS = 16
WAYS = ("maps", "two attentions + blend", "this, mixed mask", "this, no mask")


@dataclass(frozen=True)
class Chip:
    """A GPU by its datasheet. matrix: dense fp16 tensor operations a second, summed in fp32; memory: bytes a second."""

    name: str
    capability: int
    matrix: float
    memory: float
    multiprocessors: int
    clock: float
    source: str

    @property
    def exponentials(self) -> float:
        """Exponentials a second."""
        return EXPONENTIALS * self.multiprocessors * self.clock


CHIPS = (
    Chip(
        "A100 80 GB SXM",
        80,
        312e12,
        2039e9,
        108,
        1.410e9,
        "NVIDIA A100 datasheet; A100 architecture whitepaper (clock)",
    ),
    Chip(
        "RTX 3090",
        86,
        71e12,
        936e9,
        82,
        1.695e9,
        "NVIDIA GA102 architecture whitepaper, FP16 tensor with FP32 accumulate",
    ),
    Chip(
        "RTX 4090",
        89,
        165.2e12,
        1008e9,
        128,
        2.520e9,
        "NVIDIA Ada architecture whitepaper, FP16 tensor with FP32 accumulate",
    ),
    Chip(
        "H100 SXM",
        90,
        989.4e12,
        3350e9,
        132,
        1.830e9,
        "NVIDIA H100 datasheet (half of its rates with sparsity); clock of these rates",
    ),
)


@dataclass(frozen=True)
class KernelCost:
    """One kernel: matrix operations, exponentials, and bytes to and from memory."""

    operations: float
    exponentials: float
    bytes: float

    def floor(self, chip: Chip) -> float:
        """Seconds."""
        return max(self.operations / chip.matrix, self.exponentials / chip.exponentials, self.bytes / chip.memory)


def stages(site: BenchSite, way: str) -> list[KernelCost]:
    """The kernels of one branch that is fused at a site, by way.

    maps: two logits (baddbmm), two softmaxes in place, a blend, a product with the values. two attentions + blend: two
    flash attentions and a blend of their results. Both lay the anchors' keys and values side by side first (self).
    this: one launch; rows that are edited read q and k, the others q_src and k_src, so a mixed mask reads both keys,
    and no mask the source's only.
    """
    q, m = HALF * site.operand, HALF * site.map
    half = site.operations / 2  # of one of an attention's two products
    if site.kind == "self":
        kv, laid = site.anchors * q, (KernelCost(0, 0, 2 * site.anchors * q),) * 3
        if site.anchors == 1:
            laid = ()
    else:
        kv, laid = HALF * site.keys * site.channels, ()
    if way == "maps":
        # cross: the maps' columns are mixed instead of their rows: the source's map times 77 x 77, the edit's times 77
        mixing = 2 * site.map * site.keys if site.kind == "cross" else 0
        logits, softmax = KernelCost(half, 0, q + kv + m), KernelCost(0, site.map, 2 * m)
        return [*laid, logits, logits, softmax, softmax, KernelCost(mixing, 0, 3 * m), KernelCost(half, 0, m + kv + q)]
    attention = KernelCost(site.operations, site.map, 2 * q + 2 * kv)
    if way == "two attentions + blend":
        return [*laid, attention, attention, KernelCost(0, 0, 3 * q)]
    keys = q if site.kind == "self" else kv  # the anchors are read where they lie
    both = way == "this, mixed mask"
    if site.kind == "cross":
        # cross has no mask: 'mixed' is columns of both prompts, 'no mask' columns of the source's only
        return [KernelCost(site.operations * (1 + both), site.map * (1 + both), q * (2 + both) + keys * (2 + 2 * both))]
    return [KernelCost(site.operations, site.map, 2 * q + keys * (2 + both))]


def total(parts: list[KernelCost]) -> KernelCost:
    return KernelCost(sum(p.operations for p in parts), sum(p.exponentials for p in parts), sum(p.bytes for p in parts))


def floor(site: BenchSite, way: str, chip: Chip) -> float:
    """The least seconds of one layer."""
    return sum(stage.floor(chip) for stage in stages(site, way))


def limit(site: BenchSite, way: str, chip: Chip) -> str:
    """What bounds most of that time: 'matrix', 'exp' or 'memory'."""
    spent = dict.fromkeys(("matrix", "exp", "memory"), 0.0)
    for stage in stages(site, way):
        parts = (stage.operations / chip.matrix, stage.exponentials / chip.exponentials, stage.bytes / chip.memory)
        name, seconds = max(zip(spent, parts, strict=True), key=lambda pair: pair[1])
        spent[name] += seconds
    return max(spent, key=spent.get)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def site_table(found: list[BenchSite]) -> str:
    """Per site and way: bytes, operations, intensity, and the floor on each chip with what sets it."""
    rows = []
    for site in found:
        for way in WAYS:
            cost = total(stages(site, way))
            counts = (cost.bytes / 1e6, cost.operations / 1e9, cost.exponentials / 1e6)
            floors = (f"{1e6 * floor(site, way, chip):.1f} {limit(site, way, chip)}" for chip in CHIPS)
            rows.append([site.name, way, *(f"{x:.1f}" for x in counts), f"{cost.operations / cost.bytes:.0f}", *floors])
    head = ["site", "way", "MB", "GFLOP", "M exp", "FLOP/byte", *(f"{chip.name}, µs" for chip in CHIPS)]
    return markdown(head, rows)


def sum_table(found: list[BenchSite]) -> str:
    """All fused layers of one UNet pass, ms, and how many times as long as this kernel with a mixed mask."""
    fused = [site for site in found if site.fused]
    rows = []
    for way in WAYS:
        row = [way]
        for chip in CHIPS:
            spent, ours = (sum(site.layers * floor(site, w, chip) for site in fused) for w in (way, "this, mixed mask"))
            row.append(f"{1e3 * spent:.3f} ({spent / ours:.1f} x)")
        rows.append(row)
    return markdown(["way", *(f"{chip.name}, ms" for chip in CHIPS)], rows)


# the same before whole tiles were unmasked, keys came by TMA and heads ran side by side (triton 3.9, sm_90):
# D -> registers, CTAs, issue cycles of self-attention
BEFORE = {40: (130, 1, 804), 80: (190, 1, 884)}


def compiled_table(capability: int) -> str:
    """The kernels as they are compiled for a GPU (`bench.aot`); says so where triton is not installed."""
    try:
        from bench import aot_binaries as aot
    except ImportError:
        return "triton is not installed here: nothing was compiled."
    return markdown(aot.HEAD, list(aot.rows(capability)))


def before_table() -> str:
    return markdown(["D", "registers", "CTAs", "issue, 128x64"], [[str(d), *map(str, x)] for d, x in BEFORE.items()])


def page(size: int, frames: int, anchors: int) -> str:
    """The whole page."""
    found = sites(size, frames, anchors)
    if not any(site.fused for site in found):
        raise FzError(f"size: got {size}, where no level is fused; expected at least 64.")
    rates = [
        [
            c.name,
            f"sm_{c.capability}",
            f"{c.matrix / 1e12:.1f}",
            f"{c.memory / 1e9:.0f}",
            f"{c.exponentials / 1e12:.2f}",
            c.source,
        ]
        for c in CHIPS
    ]
    head = [
        "GPU",
        "",
        "fp16 tensor, fp32 sums, dense, TFLOP/s",
        "memory, GB/s",
        "exp, T/s (16 a clock and SM)",
        "source",
    ]
    return f"""# Roofline of fused attention

Generated by `python -m bench.attention --static --size {size} --frames {frames} --anchors {anchors}`; counted, not
measured. One branch of Stable Diffusion v1.4 being fused, {frames} frames of {size} x {size} pixels, {anchors} anchor
frames, 8 heads, fp16. A time is a floor: the rates are the datasheets', caches are ideal, a kernel's bytes, products
and exponentials overlap perfectly, launches cost nothing. The word behind a time is what sets it. 'maps' builds the
edit's and the source's maps, blends them and multiplies; 'two attentions + blend' runs flash attention twice; 'this' is
`kernels/triton_self.py` and `kernels/triton_cross.py`. Cross-attention has no row mask: there 'mixed' sums both
prompts' columns, 'no mask' takes the source's only.

## Rates (datasheets)

{markdown(head, rates)}

## All fused layers of one UNet pass (levels of stride {min(s.stride for s in found if s.fused)} and more)

{sum_table(found)}

## One layer of each site

{site_table(found)}

## The compiled kernels

fp16, SD v1.4's sites; a loop is over keys (self) or queries (cross). Issue: cycles in which a multiprocessor's four
schedulers issue the loop for 128 x 64 logits; the exponentials of these take 544, products 384 at D = 40. 12 warps: 4
load and 8 compute. No kernel spills; `tests/test_aot.py` keeps it so.

float32 on sm_90 multiplies by tensor cores, three TF32 products for one: D = 40 takes 3052 cycles (179 registers, one
CTA), D = 80 4028 (224, two), wider heads fused multiply-adds. Before, these took 9456 at D = 40.

sm_90:

{compiled_table(90)}

sm_80:

{compiled_table(80)}

sm_90 before (self-attention, plain and fused alike; cross-attention had 42 to 101 barriers a tile and one CTA):

{before_table()}
"""


def write(size: int, frames: int, anchors: int) -> str:
    """Write the page and return it."""
    text = page(size, frames, anchors)
    PAGE.write_text(text, encoding="utf-8")
    return text
