"""The report: every figure of the project from one command, with the runs it was made of."""
