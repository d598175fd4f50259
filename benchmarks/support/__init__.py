"""What the benchmarks share: servers, workers, a provider, jobs, meters, charts."""
