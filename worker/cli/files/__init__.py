"""Jobs in files: JSON, NDJSON and CSV."""
