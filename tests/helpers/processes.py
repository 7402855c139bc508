"""Programs on several processes, as torchrun starts them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALONE = ("--standalone", "--local-addr", "127.0.0.1")


def start_processes(
    script: Path,
    *arguments: object,
    count: int = 2,
    restarts: int = 0,
    cwd: Path = ROOT,
    options: Sequence[str] = ALONE,
) -> subprocess.Popen[str]:
    """torchrun on a free port with a Python file and its arguments; signals sent to it reach all processes."""
    run = [sys.executable, "-m", "torch.distributed.run", *options]
    command = [*run, "--nproc-per-node", str(count), "--max-restarts", str(restarts), str(script), *map(str, arguments)]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths.rstrip(os.pathsep)}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment
    )


def run_processes(
    script: Path, *arguments: object, count: int = 2, restarts: int = 0, cwd: Path = ROOT, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """What `start_processes` comes to; what hangs ends in an AssertionError that shows what was said."""
    process = start_processes(script, *arguments, count=count, restarts=restarts, cwd=cwd)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun passes it on, and after 30 s it kills
        out, err = process.communicate()
        raise AssertionError(f"not done after {timeout} s:\n{out}\n{err}") from None
    except BaseException:
        process.terminate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)
