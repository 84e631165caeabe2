"""Reports: tables, pictures and an HTML page of results that have been computed already."""
