"""Many runs: sweeps, the paper's tables, reports, benchmarks, forecasts. Import the modules; this loads nothing."""
