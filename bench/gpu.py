"""Our CogView4 and Qwen-Image against diffusers on one GPU: parity, memory, seconds a step; distilled pipelines end to end. Random weights, full size.

    python -m bench.gpu --smoke --grid --trace --results gpu.jsonl --tables gpu.md [--budget-s 300]
    python -m bench.gpu --distilled --results gpu.jsonl --tables gpu.md   # FLUX.2-klein-4B and Z-Image-Turbo end to end
    python -m bench.gpu --tricks --results gpu.jsonl --tables gpu.md      # each way to save work alone, then all together
    python -m bench.gpu --paths --results gpu.jsonl                       # what never ran on a card, against the plain way
    python -m bench.gpu --tiny --smoke --grid --trace --results /tmp/tiny.jsonl --tables /tmp/tiny.md   # every path, on a CPU

Every cell is a line of the results file as soon as it is measured, with the commit, card, driver, versions, load and date that it is of;
cells that the file has are not measured again, but for those that failed. The most valuable come first, and none is begun after the budget. Without a GPU (and without --tiny) nothing is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench._gpu_measure import Bench

BATCHES = (1, 2, 4, 8)
FAMILIES = ("cogview4", "qwen_image")
PEERS = ("diffusers", "diffusers-compiled")
OTHERS = ("whole", "precision", "vae", "mixed", "served", "overlap", "offload")
PARTS = ("smoke", "profile", "grid", "trace", "distilled", "paths", "tricks")
Planned = tuple[str, Callable[[], dict[str, Any]], float]
"""A cell's key, what measures it, and the seconds that it may take."""


def plan(bench: Bench, names: list[str], parts: set[str]) -> Iterator[Planned]:
    """The most valuable first."""
    from bench import _gpu_measure as m
    from bench._gpu_precision import precision
    from bench._gpu_trace import COMPILED_FIFO, FIFO, trace

    small, large = bench.sides[0], bench.sides[1 if bench.tiny else 2]
    batches = BATCHES[:2] if bench.tiny else BATCHES
    steps, count = 4 if bench.tiny else 20, batches[-1]
    if "paths" in parts:
        yield from _paths(bench, names)
    if "distilled" in parts:
        yield from _distilled(bench)
    if "tricks" in parts:
        yield from _tricks(bench, names, (large, small))
    if "smoke" in parts:
        for name in names:
            yield f"smoke {name} {small}", lambda n=name: m.parity(bench, n, small), 25
        for name in names:
            yield f"whole {name} {large}", lambda n=name: m.whole(bench, n, large), 15
    if "profile" in parts:
        for side in (large, small):
            for name in names:
                yield f"profile {name} {side}", lambda n=name, s=side: m.profile(bench, n, s), 3
    if "grid" in parts:
        first = [(small, 1), (large, 1), (small, batches[-1])]
        ways = ("ours", PEERS[0], "ours-flash")
        yield from _cells(bench, names, first[:2], ways)
        yield from _cells(bench, names, first[2:], ways[:2])
        for name in reversed(names):
            key = f"served {name} {small}"
            yield key, lambda n=name: m.served(bench, n, small, steps, 8), 25
            capped = lambda n=name: m.served(bench, n, small, steps, 8, count)  # noqa: E731
            yield f"{key} cap-{count}", capped, 15
        for name in names:
            yield f"mixed {name} {small} {count}", lambda n=name: m.mixed(bench, n, small, count), 6
            for batch in (1, count):
                key = f"cell {name} {small} {batch} ours-unguided"
                unguided = lambda n=name, b=batch: m.cell(bench, n, small, b, "ours", guided=False)  # noqa: E731
                yield key, unguided, 3
        alone = [(side, 1) for side in bench.sides if (side, 1) not in first]
        yield from _cells(bench, names, alone, ("ours", PEERS[0]))
    if "smoke" in parts:
        for name in names:
            yield f"precision {name} {small}", lambda n=name: precision(bench, n), 30
    if "trace" in parts:
        rate, jobs, most = (10.0, 12, 8) if bench.tiny else (0.6, bench.trace_jobs, 30)
        for server in ("ours", COMPILED_FIFO if bench.compiled else FIFO):
            mixed = lambda s=server: trace(bench, names[0], (small, large), s, rate, jobs, most)  # noqa: E731
            yield f"trace {names[0]} {small} {large} {server}", mixed, 60 + 1.2 * jobs / rate
    if "grid" in parts:
        few = (
            [(bench.sides[1], 2)]
            if bench.tiny
            else [(512, 2), (512, 4), (768, 2), (768, 4), (1024, 2)]
        )
        yield from _cells(bench, names, few, ("ours", PEERS[0]))
    if "smoke" in parts:
        for name in names:
            yield f"vae {name} {large}", lambda n=name: m.vae(bench, n, large), 3
            yield f"smoke {name} {large}", lambda n=name: m.parity(bench, n, large), 45
    if "grid" in parts:
        if bench.compiled:
            yield from _cells(bench, names, first, PEERS[1:], compile_s=20)
        rest = [(side, b) for b in batches[1:] for side in bench.sides if (side, b) not in first]
        yield from _cells(bench, names, rest, ("ours", PEERS[0]))
        if bench.compiled:
            yield from _cells(bench, names, [*alone, *rest], PEERS[1:], compile_s=10)


def _paths(bench: Bench, names: list[str]) -> Iterator[Planned]:
    """What GPU-only code has no record yet: a minute or two together."""
    from bench import _gpu_paths as p

    side = bench.sides[0]
    for name in names:
        yield f"overlap {name} {side}", lambda n=name: p.overlap(bench, n, side), 25
        yield f"offload {name} {side}", lambda n=name: p.offload(bench, n, side), 15
    pipeline = "flux2_klein"
    key = f"overlap {pipeline} {side}"
    yield key, lambda: p.pipelines_overlap(bench, pipeline, side), 40


def _tricks(bench: Bench, names: list[str], sides: tuple[int, ...]) -> Iterator[Planned]:
    """Row 5 of the list: all together first, that is what has a mark."""
    from bench._gpu_tricks import names_of, trick

    for side in sides:
        for name in names:
            for which in reversed(names_of(name)):
                key = f"trick {name} {side} {which}"
                made = lambda n=name, s=side, w=which: trick(bench, n, s, w)  # noqa: E731
                yield key, made, 45 if which == "together" else 12


def _distilled(bench: Bench) -> Iterator[Planned]:
    """Row 6 of the list: the eager ones first, they need nothing but weights."""
    from bench._gpu_distilled import NAMES, distilled

    side = 64 if bench.tiny else 1024
    for compiled in (False, True) if bench.compiled else (False,):
        for name in NAMES:
            key = f"distilled {name} {side}{' compiled' if compiled else ''}"
            made = lambda n=name, c=compiled: distilled(bench, n, side, compiled=c)  # noqa: E731
            yield key, made, 90 if compiled else 40


def _cells(
    bench: Bench, names: list[str], shapes: list[tuple[int, int]], ways: tuple[str, ...],
    compile_s: float = 1,
) -> Iterator[Planned]:  # fmt: skip
    from bench import _gpu_measure as m
    from bench._gpu_models import teraflop

    for side, batch in shapes:
        for name in names:
            for way in ways:
                rate = 600 if way.startswith("ours") else 350
                steps_s = teraflop(name, side, batch) * 6 / rate
                key = f"cell {name} {side} {batch} {way}"
                expected_s = compile_s + min(steps_s, 20)
                yield (
                    key,
                    lambda n=name, s=side, b=batch, w=way: m.cell(bench, n, s, b, w),
                    expected_s,
                )


def tables(done: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "## Environment",
        "",
        "```",
        json.dumps(done.get("environment", {}), indent=1),
        "```",
        "",
        *_sources(done),
    ]
    smoke = {key.split(" ", 1)[1]: row for key, row in done.items() if key.startswith("smoke ")}
    if smoke:
        lines += [
            "## Parity and memory (batch 1, both guidance halves)", "",
            "| | relative latent error | ours s | diffusers s | ours GiB | diffusers GiB | decode s |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]  # fmt: skip
        names = (
            "ours_error",
            "ours_s",
            "diffusers_s",
            "ours_peak_gib",
            "diffusers_peak_gib",
            "decode_s",
        )
        for key, row in smoke.items():
            found = " | ".join(str(row.get(name, row.get("error", "-"))) for name in names)
            lines.append(f"| {key} | {found} |")
        lines.append("")
    lines += _grid(done)
    lines += _traces(done)
    lines += _ends(done)
    lines += _saved(done)
    others = {key: row for key, row in done.items() if key.split()[0] in OTHERS}
    if others:
        lines += ["## Others", "", "```", *(json.dumps(row) for row in others.values()), "```", ""]
    return "\n".join(lines)


def _sources(done: dict[str, dict[str, Any]]) -> list[str]:
    """How many cells are of which code on which card."""
    names = ("commit", "card", "driver", "torch", "diffusers")
    found = Counter(
        tuple(str((row | row.get("versions", {})).get(name, "unknown")) for name in names)
        for key, row in done.items()
        if key != "environment"
    )
    lines = [f"| {' | '.join(source)} | {count} |" for source, count in found.most_common()]
    return [f"| {' | '.join(names)} | cells |", "| --- | --- | --- | --- | --- | --- |", *lines, ""]


def _traces(done: dict[str, dict[str, Any]]) -> list[str]:
    rows = {key: row for key, row in done.items() if key.startswith("trace ")}
    if not rows:
        return []
    names = ("jobs", "small_p50_s", "small_p95_s", "large_p50_s", "large_p95_s", "requests_per_s")
    lines = [
        "## The mixed trace (seconds from arrival to pixels)", "",
        f"| | {' | '.join(names)} | ours: small p95, requests/s against it |", "| --- |" + " --- |" * 7,
    ]  # fmt: skip
    for key, row in rows.items():
        ours = rows.get(f"{key.rpartition(' ')[0]} ours", {})
        against = "-"
        if row is not ours and "requests_per_s" in row and "requests_per_s" in ours:
            shares = [ours[name] / row[name] for name in ("small_p95_s", "requests_per_s")]
            against = ", ".join(f"{share:.2f}x" for share in shares)
        found = " | ".join(str(row.get(name, row.get("error", "-"))) for name in names)
        lines.append(f"| {key.removeprefix('trace ')} | {found} | {against} |")
    return [*lines, ""]


def _ends(done: dict[str, dict[str, Any]]) -> list[str]:
    rows = {key: row for key, row in done.items() if key.startswith("distilled ")}
    if not rows:
        return []
    lines = [
        "## End to end: from the prompt to the PNG, no HTTP (seconds)", "",
        "| | whole | text | denoise | decode | PNG | text read before | mark | GiB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    names = ("whole_s", "encode_s", "denoise_s", "decode_s", "png_s", "read_before_s", "mark_s")
    for key, row in rows.items():
        found = [row.get(name, row.get("error", "-")) for name in (*names, "peak_gib")]
        lines.append(f"| {key.removeprefix('distilled ')} | {' | '.join(map(str, found))} |")
    return [*lines, ""]


def _saved(done: dict[str, dict[str, Any]]) -> list[str]:
    rows = {key: row for key, row in done.items() if key.startswith("trick ")}
    if not rows:
        return []
    names = ("steps", "without_s", "with_s", "gain", "error", "without_peak_gib", "with_peak_gib")
    lines = [
        "## Ways to save work: a whole image without and with (seconds)", "",
        f"| | {' | '.join(names)} |", "| --- |" + " --- |" * len(names),
    ]  # fmt: skip
    for key, row in rows.items():
        found = " | ".join(str(row.get(name, row.get("error", "-"))) for name in names)
        lines.append(f"| {key.removeprefix('trick ')} | {found} |")
    return [*lines, ""]


def _grid(done: dict[str, dict[str, Any]]) -> list[str]:
    cells: dict[tuple[str, int, int], dict[str, dict[str, Any]]] = {}
    for key, row in done.items():
        if key.startswith("cell "):
            _, name, side, batch, way = key.split()
            cells.setdefault((name, int(side), int(batch)), {})[way] = row
    if not cells:
        return []
    ways = ("ours", *PEERS)
    lines = [
        "## Seconds a step", "",
        "| model | side | batch | ours s | TFLOP/s | GiB | diffusers s | compiled s | ours vs diffusers | vs compiled |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for (name, side, batch), found in sorted(cells.items()):
        step = {way: found.get(way, {}).get("step_s") for way in ways}

        def times(way: str, step: dict[str, Any] = step) -> str:
            return (
                f"{step[way] / step['ours']:.2f}x" if step[way] and step["ours"] else "not measured"
            )

        ours = found.get("ours", {})
        values = [f"{step[way]:.4f}" if step[way] else "not measured" for way in ways]
        lines.append(
            f"| {name} | {side} | {batch} | {values[0]} | {ours.get('tflops', '-')} | {ours.get('peak_gib', '-')} "
            f"| {values[1]} | {values[2]} | {times(PEERS[0])} | {times(PEERS[1])} |"
        )
    return [*lines, ""]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    for part in PARTS:
        parser.add_argument(f"--{part}", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="small networks on the CPU: a dry run")
    parser.add_argument("--no-compile", action="store_true", help="torch.compile nowhere")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--steps", type=int, default=50, help="of a whole image, at least 8")
    parser.add_argument("--trace-jobs", type=int, default=100, help="requests of the mixed trace")
    parser.add_argument("--budget-s", type=float, default=1e9)
    parser.add_argument("--results", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--tables", type=Path)
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("diffusers") is None:
        print("not measured: torch and diffusers are not installed")
        return
    import diffusers
    import torch

    diffusers.utils.logging.set_verbosity_error()
    if not options.tiny and not torch.cuda.is_available():
        print("not measured: there is no GPU here")
        return
    from bench._gpu_measure import Bench, commit, environment

    device = torch.device("cpu" if options.tiny else "cuda")
    bench = Bench(
        options.results,
        device,
        options.tiny,
        not options.no_compile,
        options.budget_s,
        options.steps,
        options.trace_jobs,
        commit(),
    )
    if options.results.exists():
        for line in options.results.read_text("utf-8").splitlines():
            row = json.loads(line)
            bench.done[row["key"]] = row
    bench.done.pop("environment", None)  # this run's own
    bench.run("environment", lambda: environment(bench))
    parts = {part for part in PARTS if getattr(options, part)}
    try:
        for key, measure, expected_s in plan(bench, options.families.split(","), parts):
            bench.run(key, measure, 0 if options.tiny else expected_s)
    finally:
        if options.tables is not None:
            options.tables.write_text(tables(bench.done), "utf-8")
    print(f"{len(bench.done)} cells, {bench.elapsed_s():.1f} s", flush=True)


if __name__ == "__main__":
    main()
