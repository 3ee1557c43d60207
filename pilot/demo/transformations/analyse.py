#!/usr/bin/env python3
"""analyse.py EVENTS RESULT: needs a calibration that nobody delivered, so it fails as user code does."""

import sys

source, target = sys.argv[1:]
with open(source) as events:
    energies = [float(line) for line in events]
print(f"read {len(energies)} events")
with open("calibration.json") as calibration:
    factor = float(calibration.read())
with open(target, "w") as result:
    result.write(str(sum(energies) * factor))
