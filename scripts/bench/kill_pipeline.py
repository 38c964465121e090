"""Kills a pipeline with SIGKILL at random moments until it is through, and compares it with an unbroken one.

    python scripts/bench/kill_pipeline.py --kills 20 pipeline=r1_tiny

Prints the tally and exits 1 unless every stage's outputs (weights, traces, evaluations, report) are bitwise equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path


def command(folder: Path, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "r1.pipeline", *overrides, f"hydra.run.dir={folder}"]


def run_killed(folder: Path, overrides: list[str], delays: list[float]) -> Counter[str]:
    """Start the pipeline, kill it after each delay in turn, then let it end; return kills by the stage they hit."""
    hit: Counter[str] = Counter()
    for delay in delays:
        process = subprocess.Popen(
            command(folder, overrides), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            hit[stage_in_progress(folder)] += 1
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            if process.returncode:
                raise SystemExit(f"the pipeline failed with exit code {process.returncode}; see {folder}")
            return hit
    subprocess.run(command(folder, overrides), check=True, stdout=subprocess.DEVNULL)
    return hit


def stage_in_progress(folder: Path) -> str:
    """Return the stage that has started and has no record yet."""
    open_stages = [p.parent.name for p in folder.glob("*/stage.json") if not (p.parent / "provenance.json").exists()]
    return open_stages[0] if open_stages else "between stages"


def outputs(folder: Path) -> dict[str, dict[str, str]]:
    """Return stage -> output -> hash, of a pipeline that has ended."""
    return {name: r["outputs"] for name, r in json.loads((folder / "provenance.json").read_text()).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10, help="most kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="where both runs go; a temporary folder by default")
    parser.add_argument("overrides", nargs="*", help="of python -m r1.pipeline")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        started = time.perf_counter()
        # Both run at the same place: traces and evaluations name the model they are of by its path.
        subprocess.run(command(folder / "run", options.overrides), check=True, stdout=subprocess.DEVNULL)
        (folder / "run").rename(folder / "unbroken")
        whole = time.perf_counter() - started
        rng = random.Random(options.seed)
        # Starting Python and checking the finished stages takes some seconds of each try.
        delays = [10 + rng.uniform(0, 3) * whole / options.kills for _ in range(options.kills)]
        hit = run_killed(folder / "run", options.overrides, delays)
        expected, found = outputs(folder / "unbroken"), outputs(folder / "run")
    different = [name for name in expected if expected[name] != found.get(name)]
    print(f"{sum(hit.values())} kills in: {', '.join(f'{name} ({n})' for name, n in hit.items())}")
    print(f"{len(expected) - len(different)} of {len(expected)} stages bitwise equal to the unbroken run")
    if different:
        raise SystemExit(f"different: {', '.join(different)}")


if __name__ == "__main__":
    main()
