"""Random access to records in memory and in files."""
