"""`python -m benchmarks.ceiling`: what one Valkey has to do for a job, and how many it could carry.

And the same of the provider's stub, so that one sees that neither holds anybody up.
"""

import argparse
from typing import Any

from benchmarks import meter
from benchmarks.single import ours


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=5000, help="jobs (5000)")
    options = parser.parse_args()
    with ours() as (bench, provider):
        bench.warm_up()
        stub = meter.cpu(provider.pid)
        before: dict[str, Any] = bench.server.info("all")
        found = bench.burst(options.jobs)
        after: dict[str, Any] = bench.server.info("all")
        stub = (meter.cpu(provider.pid) - stub) / found.jobs * 1000

    def a_job(name: str) -> float:
        return float(after[name] - before[name]) / found.jobs

    server = (a_job("used_cpu_user_main_thread") + a_job("used_cpu_sys_main_thread")) * 1000
    scripts = (after["cmdstat_evalsha"]["calls"] - before["cmdstat_evalsha"]["calls"]) / found.jobs
    print(
        f"Valkey, a job from enqueue to result: {a_job('total_commands_processed'):.1f} commands, "
        f"{scripts:.1f} of them scripts; {a_job('total_net_input_bytes') / 1000:.1f} kB in, "
        f"{a_job('total_net_output_bytes') / 1000:.1f} kB out; {server:.2f} ms of CPU"
    )
    print(f"one Valkey carries at most {1000 / server:.0f} jobs/s (computed: its CPU a job)")
    print(
        f"the stub carries at most {1000 / stub:.0f} calls/s (computed: {stub:.2f} ms of CPU each)"
    )


if __name__ == "__main__":
    main()
