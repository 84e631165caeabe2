"""Reports: plots and tables of result files. Nothing here knows models or data."""
