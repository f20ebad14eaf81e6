"""The phases of a job, from a name to a saved run: plain functions of small values, called by `api`."""
