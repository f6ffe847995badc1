"""``python -m tests.benchmarks.serving``: requests per second, measured with ``wrk``.

Serves an untrained policy of the default settings' size on this machine, whose CPUs the client
shares. Each client keeps one connection open, and sends its next request after each answer.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from maml_ray.config.loading import validate_settings
from tests.benchmarks.arguments import count
from tests.small_runs import run_of

PORT = 8127
CLIENTS = (1, 64)
_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '%s'
done = function(summary, latency)
  local errors = summary.errors
  local bad = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  io.write(string.format("FIGURES %%d %%d %%d %%d %%d\\n", summary.requests, summary.duration,
    latency:percentile(50), latency:percentile(99), bad))
end
"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving")
    parser.add_argument("--seconds", type=count, default=10, help="for each number of clients")
    parser.add_argument("--replicas", type=count, default=1, help="processes of the service")
    chosen = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("wrk is not installed: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        chosen_settings = validate_settings({"task": {"name": "half-cheetah-direction"}})
        run = run_of(chosen_settings, Path(folder) / "run")
        service = _started(run.path, chosen.replicas, Path(folder) / "log")
        try:
            _measure(1, 2, Path(folder))  # warm
            print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} before")
            print("clients   requests/s   p50 ms   p99 ms   errors")
            for clients in CLIENTS:
                rate, median, slowest, errors = _measure(clients, chosen.seconds, Path(folder))
                print(f"{clients:>7}{rate:>13.0f}{median:>9.2f}{slowest:>9.2f}{errors:>9}")
        finally:
            service.send_signal(signal.SIGINT)
            service.wait(60)


def _started(run: Path, replicas: int, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "maml_ray", "serve", str(run), "--port", str(PORT)]
    with log.open("wb") as output:
        service = subprocess.Popen([*command, "--replicas", str(replicas)], stdout=output)
    deadline = time.monotonic() + 180.0
    while b"Ctrl-C" not in log.read_bytes():
        if service.poll() is not None or time.monotonic() > deadline:
            service.kill()
            sys.exit(f"the service is not up: {log.read_text()}")
        time.sleep(0.2)
    return service


def _measure(clients: int, seconds: int, folder: Path) -> tuple[float, float, float, int]:
    """Requests a second, median and 99th percentile in ms, and errors."""
    body = json.dumps({"observations": [round(0.1 * i - 0.8, 1) for i in range(17)]})
    script = folder / "act.lua"
    script.write_text(_SCRIPT % body)
    url = f"http://127.0.0.1:{PORT}/act"
    done = subprocess.run(
        ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "-s", str(script), url],
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + 60,
    )
    found = re.search(r"FIGURES (\d+) (\d+) (\d+) (\d+) (\d+)", done.stdout)
    assert found is not None, done.stdout
    requests, microseconds, median, slowest, errors = map(int, found.groups())
    return 1e6 * requests / microseconds, median / 1000, slowest / 1000, errors


if __name__ == "__main__":
    main()
