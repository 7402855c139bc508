"""Programs on several processes, as torchrun starts them."""

import os
import socket
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
    return _start(command, cwd)


def run_processes(
    script: Path, *arguments: object, count: int = 2, restarts: int = 0, cwd: Path = ROOT, timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """What `start_processes` comes to; what hangs ends in an AssertionError that shows what was said."""
    return _finished(start_processes(script, *arguments, count=count, restarts=restarts, cwd=cwd), timeout)


FORK = """
import os, runpy, signal, sys
import detector.training.run

children = []
for number in range(int(os.environ["WORLD_SIZE"])):
    children.append(os.fork())
    if children[-1] == 0:
        os.environ.update(RANK=str(number), LOCAL_RANK=str(number))
        signal.alarm(100)  # nobody ends a process that hangs
        del sys.argv[0]
        runpy.run_path(sys.argv[0], run_name="__main__")
        sys.exit()
sys.exit(any([os.waitpid(child, 0)[1] for child in children]))
"""


def fork_processes(script: Path, *arguments: object, count: int = 2) -> subprocess.CompletedProcess[str]:
    """As `run_processes`, without torchrun: the processes know what it would tell them, and PyTorch is imported once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"TORCHELASTIC_RUN_ID": "forked", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count}
    command = [sys.executable, "-c", FORK, str(script), *map(str, arguments)]
    return _finished(_start(command, ROOT, **told), 120)


def _start(command: Sequence[str], cwd: Path, **told: object) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths.rstrip(os.pathsep)}
    environment |= {name: str(value) for name, value in told.items()}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, env=environment
    )


def _finished(process: subprocess.Popen[str], timeout: float) -> subprocess.CompletedProcess[str]:
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
