"""The resources that a step used, while a run is going on: records, memory, energy, peak
arithmetic, traces."""
