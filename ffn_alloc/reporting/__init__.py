"""From result files to a report: relative improvement, how sure it is, tables and figures."""
