#!/usr/bin/env python3
"""mandelbrot.py IMAGE WIDTH: draw the Mandelbrot set as a grey PGM image."""

import sys

target, width = sys.argv[1], int(sys.argv[2])
height = width * 3 // 4


def escape_time(point: complex, limit: int = 80) -> int:
    """Steps until the orbit of `point` leaves the circle of radius 2, at most `limit`."""
    z = 0j
    for step in range(limit):
        if abs(z) > 2:
            return step
        z = z * z + point
    return limit


with open(target, "wb") as image:
    image.write(b"P5 %d %d 80\n" % (width, height))
    for row in range(height):
        y = (row / height - 0.5) * 2.4
        image.write(bytes(escape_time(complex(column / width * 3.2 - 2.2, y)) for column in range(width)))
    print(f"{row + 1} rows of {width} points")
