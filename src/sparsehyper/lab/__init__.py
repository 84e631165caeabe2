"""What the command line and the studies need: data, runs, studies, reports and benchmarks."""
