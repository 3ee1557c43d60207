#!/usr/bin/env bash
# What a batch system starts: finds a Python, fetches the pilot and checks that it is the right one, and becomes
# `pilot wrap`, which does the rest. Every option of the wrapper of Pilot 3 is taken; docs/wrapper.md explains them.
#
#   pilot-wrapper.sh -q QUEUE --pilot-user NAME [--piloturl URL --pilotsha256 SUM] [options of the wrapper or the pilot]
set -uo pipefail

readonly MINIMUM="3, 11"
url='' fresh='' sum="${PILOT_SHA256:-}" version='' localpy=false harvester=false cvmfs="${ATLAS_SW_BASE:-/cvmfs}"
python='' scratch='' child=''

say() { printf '%s [wrapper] %s\n' "$(date --utc +'%Y-%m-%d %H:%M:%S')" "$*" >&2; }

# End: 1 is a fault of the wrapper to Harvester, 64 says that the pilot (commonly on CVMFS) cannot be had.
fail() {
    say "FATAL: $2"
    leave "$1"
}

leave() {
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
    [ -z "$fresh" ] || rm -rf -- "$fresh"
    [ -z "$scratch" ] || [ "$scratch" = "$PWD" ] || rm -rf -- "$scratch"
    exit "$1"
}

read_options() {
    while [ $# -gt 0 ]; do
        case "$1" in
        -h | --help)
            sed -n '2,5s/^# \{0,1\}//p' "$0"
            exit
            ;;
        --piloturl) url="${2:-}" ;;
        --piloturl=*) url="${1#*=}" ;;
        --pilotsha256) sum="${2:-}" ;;
        --pilotsha256=*) sum="${1#*=}" ;;
        --pilotversion) version="${2:-}" ;;
        --cvmfsbase) cvmfs="${2:-}" ;;
        --localpy) localpy=true ;;
        --harvester | --harvester_workflow) harvester=true ;;
        esac
        shift
    done
    if [ -z "$url" ] && $harvester; then url=local; fi
    [ -n "$url" ] || url="$cvmfs/atlas.cern.ch/repo/sw/PandaPilot/tar/pilot3$(version_suffix).tar.gz"
}

version_suffix() {
    case "$version" in '' | 3 | latest | current) ;; *) printf -- '-%s' "$version" ;; esac
}

is_good() { "$1" -c "import sys; sys.exit(sys.version_info < ($MINIMUM))" >/dev/null 2>&1; }

# Pythons of this node: the one that is named, those in PATH, those on CVMFS.
candidates() {
    local name
    [ -z "${PILOT_PYTHON:-}" ] || printf '%s\n' "$PILOT_PYTHON"
    for name in python3 python3.14 python3.13 python3.12 python3.11; do command -v "$name"; done
    $localpy || printf '%s\n' "$cvmfs"/sft.cern.ch/lcg/releases/Python/3.1[1-9]*/*-opt/bin/python3
}

find_python() {
    while read -r python; do
        if [ -x "$python" ] && is_good "$python"; then return 0; fi
    done < <(candidates)
    return 1
}

# Environment modules, where a site has them: `module` is a function of the login shell.
load_module() {
    local name
    type module >/dev/null 2>&1 || return 1
    for name in "${PILOT_PYTHON_MODULE:-python}" python3; do
        module load "$name" >/dev/null 2>&1 && find_python && return 0
    done
    return 1
}

# The last resort: an image with a Python, in which this script starts again.
enter_container() {
    local runtime
    [ -n "${PILOT_WRAPPER_IMAGE:-}" ] && [ -z "${APPTAINER_CONTAINER:-}${SINGULARITY_CONTAINER:-}" ] || return 1
    runtime=$(command -v apptainer || command -v singularity) || return 1
    say "no Python >= 3.11 on this node: entering $PILOT_WRAPPER_IMAGE"
    local binds=(-B "$PWD" -B "$(dirname "$(readlink -f "$0")")")
    [ ! -d "$cvmfs" ] || binds+=(-B "$cvmfs")
    exec "$runtime" exec "${binds[@]}" --pwd "$PWD" "$PILOT_WRAPPER_IMAGE" "$(readlink -f "$0")" "$@"
}

has_room() { [ "$(df -Pk -- "$1" 2>/dev/null | awk 'NR == 2 {print $4}')" -gt "$2" ] 2>/dev/null; }

# The first place that can be written to and has the 2 GiB that a pilot wants before it takes a job (free_space_limit),
# else 100 MiB: a TMPDIR that is full must not stop a node with room elsewhere.
make_scratch() {
    local place least
    scratch="$PWD"
    if $harvester || [ "$url" = local ]; then return; fi
    for least in 2097152 102400; do
        for place in "${OSG_WN_TMP:-}" "${TMPDIR:-}" "$PWD"; do
            if [ -z "$place" ] || ! has_room "$place" "$least"; then continue; fi
            scratch=$(mktemp -d "$place/pilot_XXXXXXXX" 2>/dev/null) && return
        done
    done
    scratch=''
    fail 1 "no work directory: neither OSG_WN_TMP, TMPDIR nor $PWD can be written to and has 100 MiB"
}

# Fetch with Python, whose TLS is verified: curl may not be there. A URL needs a checksum: one that is given, or that of
# the file SHA256SUMS beside it.
# It is no here-document: those of bash before 5.1 are files in a TMPDIR that may be full.
readonly FETCH='
import hashlib, http.client, os, signal, sys, tarfile, urllib.parse, urllib.request

url, wanted, target = sys.argv[1:]
signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"{url}: not here after 300 s"))
signal.alarm(300)  # of all of it: a server may send a byte a minute
parts = urllib.parse.urlsplit(url)
path = urllib.parse.unquote(parts.path) if parts.scheme == "file" else "" if parts.scheme else url
loopback = parts.hostname in ("localhost", "127.0.0.1", "::1")
if not path and parts.scheme != "https" and not (parts.scheme == "http" and (wanted or loopback)):
    sys.exit(f"--piloturl {url}: expected a path, file:// or https://; plain http needs --pilotsha256")


def read(place):
    with urllib.request.urlopen(place, timeout=60) as answer:
        return answer.read(256 << 20)


try:
    content = open(path, "rb").read() if path else read(url)  # whole, to be checked before a byte of it is used
    if not wanted and not path:
        name = os.path.basename(parts.path)
        rows = [row.split() for row in read(urllib.parse.urljoin(url, "SHA256SUMS")).decode().splitlines()]
        wanted = next((row[0] for row in rows if len(row) == 2 and row[1].lstrip("*") == name), "")
        if not wanted:
            sys.exit(f"SHA256SUMS beside {url} does not name {name}; give --pilotsha256")
except (OSError, ValueError, http.client.HTTPException) as error:
    sys.exit(f"{url}: {error!r}")
found = hashlib.sha256(content).hexdigest()
if wanted and found != wanted.lower():
    sys.exit(f"{url}: its SHA-256 is {found}, not {wanted}")
archive = os.path.join(target, "pilot3.tar.gz")
with open(archive, "wb") as file:
    file.write(content)
with tarfile.open(archive) as packed:
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    packed.extractall(target, **safe)
os.remove(archive)
try:
    os.write(2, f"fetched {url}, SHA-256 {found}\n".encode())
except OSError:  # a full disk under our own log is no reason to end
    pass
'

fetch() {
    "$python" -I -c "$FETCH" "$url" "$sum" "$scratch" &
    child=$!
    wait "$child"
    local status=$?
    child=''
    return $status
}

# What lies in this directory: of several nodes that share it one unpacks, the others see all of it or nothing.
unpack() {
    fresh=$(mktemp -d ./pilot3_XXXXXXXX) && tar -xzf pilot3.tar.gz -C "$fresh" && mv -T "$fresh/pilot3" pilot3 2>/dev/null
    rm -rf -- "$fresh"
    [ -f pilot3/pilot.py ]
}

get_pilot() {
    if [ "$url" = local ]; then
        [ -z "$sum" ] || echo "$sum  pilot3.tar.gz" | sha256sum -c >&2 ||
            fail 64 "pilot3.tar.gz in $PWD is not the one of --pilotsha256"
        [ -f pilot3/pilot.py ] || unpack || fail 64 "no pilot3/ and no pilot3.tar.gz in $PWD"
    else
        fetch || fail 64 "the pilot cannot be had"
    fi
    [ -f "$scratch/pilot3/pilot.py" ] || fail 64 "$url has no pilot3/pilot.py"
}

trap 'say "stopped by a signal before the pilot began"; leave 1' TERM INT QUIT USR1 XCPU HUP
read_options "$@"
find_python || load_module || enter_container "$@" ||
    fail 1 "no Python >= 3.11: set PILOT_PYTHON, PILOT_PYTHON_MODULE, or PILOT_WRAPPER_IMAGE"
say "Python: $python"
make_scratch
get_pilot
export PILOT_WRAPPER="${PILOT_WRAPPER:-$(readlink -f "$0")}"  # to start it again in a container
# A signal that comes while Python starts waits until somebody listens, where `env` can do that (GNU coreutils 8.31).
set -- "$python" "$scratch/pilot3/pilot.py" wrap --scratch "$scratch" "$@"
readonly BLOCK=--block-signal=TERM,INT,QUIT,USR1,USR2,XCPU,HUP
if env "$BLOCK" true 2>/dev/null; then exec env "$BLOCK" "$@"; fi
exec "$@"
