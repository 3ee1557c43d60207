#!/usr/bin/env python3
"""wordcount.py TEXT COUNTS: count the words of a text, the most frequent first."""

import collections
import re
import sys

source, target = sys.argv[1:]
with open(source) as text:
    counts = collections.Counter(word for line in text for word in re.findall(r"[a-z]+", line.lower()))
with open(target, "w") as table:
    table.writelines(f"{count}\t{word}\n" for word, count in counts.most_common())
print(f"{sum(counts.values())} words, {len(counts)} different")
