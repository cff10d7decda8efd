"""Compare the speed of two functions so that a busy machine disturbs both alike."""

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "scikit-learn", "torch", "skorch")


def paired_ratio(a: Callable[[], Any], b: Callable[[], Any], repeats: int = 7) -> dict[str, Any]:
    """Time `a` and `b` in turns, A B A B, and return the ratio of their times, pair by pair.

    One pair more runs first and is thrown away: it pays for imports, caches and memory.

    Parameters
    ----------
    a, b : callable
        Called without arguments.
    repeats : int, default=7
        The number of pairs, at least 1.

    Returns
    -------
    result : dict
        `ratio`, `a_seconds` and `b_seconds`: each the median, the quartiles and the extremes over the pairs;
        `ratio` is time of `a` / time of `b`, so 3 means that `b` is three times faster.
    """
    pairs = [(_seconds(a), _seconds(b)) for _ in range(repeats + 1)][1:]
    return {
        "repeats": repeats,
        "ratio": summary([first / second for first, second in pairs]),
        "a_seconds": summary([first for first, _ in pairs]),
        "b_seconds": summary([second for _, second in pairs]),
    }


def environment(packages: Iterable[str] = PACKAGES) -> dict[str, Any]:
    """Return what a figure depends on besides the code: machine, versions of packages, commit, load at the start."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in packages},
        "commit": _commit(),
    }


def benchmark_arguments(description: str, default_repeats: int = 7, cases: Iterable[str] = ()) -> argparse.Namespace:
    """Read `--repeats`, `--out` and, where there are any, `--cases` from the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=default_repeats, help="timed pairs per row")
    parser.add_argument("--out", type=Path, help="JSON file to write; none by default")
    if cases:
        parser.add_argument("--cases", nargs="+", choices=list(cases), default=list(cases), help="all by default")
    arguments = parser.parse_args()
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    return arguments


def print_row(name: str, result: dict[str, Any]) -> None:
    """Print one comparison: milliseconds of each side and the ratio with its extremes."""
    a, b = (1e3 * result[side]["median"] for side in ("a_seconds", "b_seconds"))
    ratio = result["ratio"]
    spread = f"({ratio['min']:.2f} to {ratio['max']:.2f})"
    print(f"{name:<34} {a:>10.2f} ms {b:>10.2f} ms {ratio['median']:>8.2f} x  {spread}")


def write_record(out: Path | None, results: dict[str, Any]) -> None:
    """Write results and environment as JSON, where a file is asked for."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"environment": environment(), "results": results}, indent=2) + "\n")


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    """Return the median, the quartiles and the extremes."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {
        "median": quartiles[1],
        "lower_quartile": quartiles[0],
        "upper_quartile": quartiles[2],
        "min": min(values),
        "max": max(values),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
