"""Chooses the best epoch, tests it and reports. Imports `tracking`, `runs` and below; never `training`."""
