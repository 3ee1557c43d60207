"""The job file of `pilot local`: one job without a server.

A file that has a `PandaID` is a server's job definition in JSON. Any other is the short form below, in YAML or JSON:

    payload: wc -w words.txt > count.txt        # or: transformation: URL-or-path, parameters: text
    inputs:  [{url: data/words.txt, checksum: "adler32:0a1b2c3d"}]      # also: lfn, size (bytes), guid
    outputs: [{lfn: count.txt, destination: out/}]
    log:     {lfn: log.tgz, destination: out/}
    cores: 1
    limits:  {memory: 2 GB, walltime: 1 h, disk: 10 GB}
    environment: {LANG: C}

`payload` or `transformation` is needed, the rest is optional, but each input needs a `url`, each output an `lfn` and
the `destination` (a directory, as path or URL) it goes to. Paths are relative to the file; `~` is refused rather than
expanded, since a job file has no home. Sizes need a unit: k, M, G, T with or without B are powers of 1000, Ki, Mi, Gi,
Ti of 1024. Times are in s, min, h or d, alone or together (`1 h 30 min`).
"""

from __future__ import annotations

import math
import os.path
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote
from uuid import uuid4

from pilot.errors import Code, JobDefinitionError
from pilot.job import NOTHING, File, Job, Kind, Limits
from pilot.jobdef import ESCAPED_SCHEMES, OBJECT_SCHEMES, URL, distinct, name_in_url, parse_job
from pilot.jobfields import CHECKSUM_LENGTHS, CONTROL, MAX_TOTAL, checked_checksum, checked_lfn, is_unicode, shorten
from pilot.jobpars import JobFilters

#: Bytes of a YAML job file. Its parser takes some 10 s for a MB; long lists of files are better given as JSON.
_MAX_YAML = 256 * 1024

#: PandaID of a job that no server knows; it names the job directory and `PandaID` in the payload's environment.
LOCAL_JOB_ID = 1

_FILE = "job file"
_TOP = ("payload", "transformation", "parameters", "inputs", "outputs", "log", "cores", "limits", "environment")
_INPUT = ("url", "lfn", "checksum", "size", "guid")
_OUTPUT = ("lfn", "destination")
_LIMITS = ("memory", "walltime", "disk")

_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?) ?([kmgt])(i?)b?", re.I | re.A)
_TIME = re.compile(
    r"(\d{1,9}(?:\.\d{1,6})?) ?(s(?:ec(?:ond)?s?)?|m(?:in(?:ute)?s?)?|h(?:(?:ou)?rs?)?|d(?:ays?)?)(?![a-z]) ?",
    re.I | re.A,
)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.A)

EXAMPLE = """\
# A job for `pilot local`: save this text as job.yaml and run `pilot local job.yaml`.
# Paths are relative to this file.

# What to run: a command for bash, in a directory of its own. A `|` allows more than one line.
# A script can be given instead:
#   transformation: analyse.sh          # a path, or a URL to fetch it from
#   parameters: --events 100
payload: |
  seq 1 1000 > numbers.txt
  while read -r number; do sum=$((sum + number)); done < numbers.txt
  echo "the sum is $sum" | tee sum.txt

# Files to bring in first. The local name is `lfn`, by default the last part of the URL. Size (bytes) and checksum
# ("adler32:...", "md5:..." or "crc32c:...") are verified if they are given.
inputs: []
#  - url: data/words.txt
#    checksum: "adler32:0a1b2c3d"
#  - url: root://eospublic.example.org//eos/data/run1.root
#    lfn: input.root

# Files to take out, and the directory (a path or a URL) that each goes to. It is made if it is missing.
outputs:
  - lfn: numbers.txt
    destination: pilot-example/
  - lfn: sum.txt
    destination: pilot-example/

# The job's log, a tarball with what the payload printed and what the pilot did; leave it out for none.
log:
  lfn: log.tgz
  destination: pilot-example/

cores: 1

# The job is stopped when it uses more. 1 GB is 1000 MB, 1 GiB is 1024 MiB; times in s, min, h or d.
limits:
  memory: 2 GB
  walltime: 10 min
  disk: 1 GB

# Variables for the payload, beside the usual ones (PATH, HOME, ...).
environment:
  LANG: C
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalJob:
    """A job from a file, and what it may use."""

    job: Job
    limits: Limits


def load_job_file(
    path: Path | str, *, environ: Mapping[str, str] = NOTHING, filters: JobFilters | None = None
) -> LocalJob:
    """Read a job file of either form.

    Inputs of the short form have an absolute `url`, outputs and log the URL they go to with the LFN in it; local ones
    are `file://` URLs, escaped as RFC 8089 wants.

    Args:
        path: the file.
        environ: as for `pilot.jobdef.parse_job`, for a server's job definition only.
        filters: likewise.

    Raises:
        JobDefinitionError: the file cannot be read or used; `field` is the place in it.
    """
    path = Path(path)
    content = _parse(path, _read(path))
    if "PandaID" in content:
        return LocalJob(job=parse_job(content, environ=environ, filters=filters), limits=Limits())
    return _Builder(path.absolute().parent).build(_Section(content, "", _TOP), path.stem)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TOTAL + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise JobDefinitionError(_FILE, f"{path}: {error.strerror}", Code.NOSUCHFILE) from error
    except ValueError:
        raise JobDefinitionError(_FILE, f"{path} is not UTF-8 text") from None
    if len(content) > MAX_TOTAL:
        raise JobDefinitionError(_FILE, f"{path} has more than {MAX_TOTAL} bytes")
    return text


def _parse(path: Path, text: str) -> dict[str, Any]:
    """JSON if it can be, else YAML, of which JSON is nearly a part."""
    import json

    try:
        content = json.loads(text)
    except ValueError as error:
        if path.suffix.lower() == ".json":
            raise JobDefinitionError(_FILE, f"{path} is not JSON: {error}") from None
        content = _parse_yaml(path, text)
    except RecursionError:
        raise JobDefinitionError(_FILE, f"{path} is nested too deeply") from None
    if not isinstance(content, dict):
        _refuse(_FILE, "`key: value` lines", content, "; see `pilot local --example`")
    return content


def _parse_yaml(path: Path, text: str) -> object:
    import yaml

    if len(text) > _MAX_YAML:
        raise JobDefinitionError(_FILE, f"{path} has more than {_MAX_YAML} characters of YAML, write it as JSON")
    try:
        return yaml.safe_load(text)
    # a wrong date (2024-13-99) or a tag on what is not its kind (!!int x, !!bool x, !!timestamp x) ends in the others
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise JobDefinitionError(_FILE, f"{path} is not YAML: {_yaml_problem(error)}") from None


def _yaml_problem(error: Exception) -> str:
    """What and where, in one line; PyYAML says it in six."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error) or type(error).__name__
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem


class _Section:
    """A mapping in the file that knows its place.

    Args:
        content: what is there.
        place: its path, empty for the file itself.
        keys: what it may have.
    """

    def __init__(self, content: object, place: str, keys: Collection[str]) -> None:
        if not isinstance(content, dict):
            _refuse(place, f"`key: value` pairs ({', '.join(keys)})", content)
        self.content: dict[Any, Any] = content
        self._place = place
        for key in content:
            if key not in keys:
                raise JobDefinitionError(self.at(str(key)[:60]), f"is not known here; {_suggest(key, keys)}")

    def at(self, key: str) -> str:
        """The path of a key."""
        return f"{self._place}.{key}" if self._place else key

    def has(self, key: str) -> bool:
        """True if there is a value; `key:` with nothing behind it is none."""
        return self.content.get(key) is not None

    def text(self, key: str) -> str:
        """Text, empty if there is none."""
        value = self.content.get(key)
        if value is None:
            return ""
        if not isinstance(value, str):
            scalar = not isinstance(value, dict | list)
            _refuse(self.at(key), "text", value, "; put it in quotes if it is text" if scalar else "")
        if "\0" in value or not is_unicode(value) or not value.strip():
            _refuse(self.at(key), "text", value)
        return value

    def needed(self, key: str) -> str:
        """Text that must be there."""
        return self.text(key) or self._missing(key)

    def _missing(self, key: str) -> NoReturn:
        raise JobDefinitionError(self.at(key), "is missing")

    def number(self, key: str, least: int) -> int | None:
        """A whole number from `least` on, None if there is none."""
        value = self.content.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
            _refuse(self.at(key), f"a whole number, {least} or more", value)
        return value

    def section(self, key: str, keys: Collection[str]) -> _Section:
        """The mapping below a key, an empty one if there is none."""
        return _Section(self.content[key] if self.has(key) else {}, self.at(key), keys)

    def sections(self, key: str, keys: Collection[str]) -> list[_Section]:
        """The list of mappings below a key."""
        value = self.content[key] if self.has(key) else []
        if not isinstance(value, list):
            _refuse(self.at(key), f"a list of mappings ({', '.join(keys)})", value)
        return [_Section(item, f"{self.at(key)}[{index}]", keys) for index, item in enumerate(value)]


def _suggest(key: object, keys: Iterable[str]) -> str:
    import difflib

    near = difflib.get_close_matches(str(key)[:60].lower(), keys, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(keys)}"


def _refuse(place: str, expected: str, got: object, hint: str = "") -> NoReturn:
    raise JobDefinitionError(place, f"expected {expected}, got {shorten(got)}{hint}")


class _Builder:
    """Makes the job of the short form.

    Args:
        base: the directory that paths are relative to.
    """

    def __init__(self, base: Path) -> None:
        self._base = base

    def build(self, top: _Section, name: str) -> LocalJob:
        """The job that the file describes."""
        outputs = [self._output(section, Kind.OUTPUT) for section in top.sections("outputs", _OUTPUT)]
        log = self._output(top.section("log", _OUTPUT), Kind.LOG) if top.has("log") else None
        distinct("outputs", [*outputs, log] if log else outputs)
        transformation, parameters = self._payload(top)
        job = Job(
            job_id=LOCAL_JOB_ID,
            name=name,
            transformation=transformation,
            parameters=parameters,
            cores=top.number("cores", 1) or 1,
            inputs=distinct("inputs", [self._input(section) for section in top.sections("inputs", _INPUT)]),
            outputs=tuple(outputs),
            log=log,
            environment=_environment(top),
        )
        return LocalJob(job=job, limits=_limits(top.section("limits", _LIMITS)))

    def _payload(self, top: _Section) -> tuple[str, str]:
        payload, transformation = top.text("payload"), top.text("transformation")
        if bool(payload) == bool(transformation):
            what = "give either `payload` (a command) or `transformation` (a script), not both"
            raise JobDefinitionError("payload", what if payload else "is missing: " + what)
        if transformation:
            return self._url(top.at("transformation"), transformation), top.text("parameters")
        if top.has("parameters"):
            raise JobDefinitionError("parameters", "go with `transformation`; write them into the payload's command")
        # a single path would be taken for a file to copy into the job directory and run there
        return (f"exec {payload}" if payload.startswith("/") and len(payload.split()) == 1 else payload), ""

    def _input(self, section: _Section) -> File:
        url = self._url(section.at("url"), section.needed("url"))
        lfn = section.text("lfn")
        place = section.at("lfn" if lfn else "url")
        return File(
            lfn=checked_lfn(place, lfn or name_in_url(url)),
            kind=Kind.INPUT,
            url=url,
            checksums=_checksums(section),
            size=section.number("size", 0),
            guid=section.text("guid"),
        )

    def _output(self, section: _Section, kind: Kind) -> File:
        lfn = checked_lfn(section.at("lfn"), section.needed("lfn"), output=True)
        directory = self._url(section.at("destination"), section.needed("destination"))
        return File(lfn=lfn, kind=kind, url=_below(directory, lfn), guid=str(uuid4()))

    def _url(self, place: str, text: str) -> str:
        """A URL as it is, or the `file://` URL of a path."""
        if text.startswith("~"):
            _refuse(place, "a path or a URL", text, ": `~` is not expanded, write the whole path")
        if not URL.match(text):
            return Path(os.path.abspath(self._base / text)).as_uri()
        if CONTROL.search(text):
            _refuse(place, "a path or a URL", text)
        if text.lower().startswith("file:") and not text[5:].startswith(("///", "//localhost/")):
            _refuse(place, "file:///path or a bare path", text)
        return text


def _below(directory: str, lfn: str) -> str:
    """The URL of a file in a directory; a query (`?authz=...`) stays at the end."""
    scheme, _, rest = directory.partition("://")
    path, mark, query = (rest, "", "") if scheme.lower() in OBJECT_SCHEMES else rest.partition("?")
    name = quote(lfn) if scheme.lower() in ESCAPED_SCHEMES else lfn
    return f"{scheme}://{path.rstrip('/')}/{name}{mark}{query}"


def _checksums(section: _Section) -> Mapping[str, str]:
    place, value = section.at("checksum"), section.content.get("checksum")
    if value is None:
        return NOTHING
    kind, _, digits = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind not in CHECKSUM_LENGTHS:
        _refuse(place, f"one of {', '.join(CHECKSUM_LENGTHS)} with its hex digits, such as adler32:0a1b2c3d", value)
    return {kind: checked_checksum(place, kind, digits)}


def _environment(top: _Section) -> dict[str, str]:
    content = top.content["environment"] if top.has("environment") else {}
    if not isinstance(content, dict):
        _refuse("environment", "`NAME: text` pairs", content)
    for name in content:
        if not isinstance(name, str) or not _VARIABLE.fullmatch(name):
            _refuse("environment", "names of letters, digits and _", name)
    return {name: _variable(f"environment.{name}", value) for name, value in content.items()}


def _variable(place: str, value: object) -> str:
    """Text, or a whole number since `THREADS: 4` is natural; YAML's true, 1.10 and dates would come out wrong."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64:
        return str(value)
    if not isinstance(value, str) or "\0" in value or not is_unicode(value):
        _refuse(place, "text", value, "; put it in quotes")
    return value


def _limits(section: _Section) -> Limits:
    return Limits(
        memory_mb=_megabytes(section, "memory"),
        walltime_s=_seconds(section, "walltime"),
        disk_mb=_megabytes(section, "disk"),
    )


def _megabytes(section: _Section, key: str) -> int:
    """A size with its unit in MB of 10**6 bytes, rounded up; 0 if there is none."""
    value = section.content.get(key)
    if value is None:
        return 0
    match = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if not match or not float(match[1]):
        _refuse(section.at(key), "a size with a unit such as 2 GB or 512 MiB", value)
    unit: int = (1024 if match[3] else 1000) ** " kmgt".index(match[2].lower())
    return math.ceil(float(match[1]) * unit / 10**6)


def _seconds(section: _Section, key: str) -> int:
    """A time with its unit in s, rounded up; 0 if there is none."""
    value = section.content.get(key)
    if value is None:
        return 0
    text = value.strip() if isinstance(value, str) else ""
    parts = [(float(number), unit[0].lower()) for number, unit in _TIME.findall(text)]
    seconds = math.ceil(sum(number * _SECONDS[unit] for number, unit in parts))
    if _TIME.sub("", text) or not seconds:
        _refuse(section.at(key), "a time with a unit such as 90 min or 1 h", value)
    return seconds
