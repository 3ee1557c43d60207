#!/usr/bin/env bash
# pi.sh RESULT POINTS: estimate pi with two processes that throw darts.
set -euo pipefail
result=$1 points=$2
dart() {
    awk -v seed="$1" -v n="$points" 'BEGIN {
        srand(seed); for (i = 0; i < n; i++) { x = rand(); y = rand(); if (x * x + y * y < 1) hit++ } print hit }'
}
dart 1 >first.txt &
dart 2 >second.txt &
wait
echo "$(<first.txt) $(<second.txt) $points" | awk '{ printf "{\"pi\": %.5f, \"points\": %d}\n", 4 * ($1 + $2) / (2 * $3), 2 * $3 }' >"$result"
cat "$result"
