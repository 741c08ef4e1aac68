"""Many runs: sweeps, the paper's tables and figures, reports, benchmarks, forecasts. Import its modules."""
