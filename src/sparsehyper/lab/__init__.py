"""Parts for the command line and the studies: data, runs, studies, reports and benchmarks."""
