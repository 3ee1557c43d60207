"""Checks of what must be reached: the server, the queue's description, copy tools, storages."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterable
from email.utils import parsedate_to_datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from pilot import plugins
from pilot.assembly import make_tools
from pilot.doctor.check import Finding, Once, Patient, failure, in_threads, ok, warning
from pilot.doctor.credentials import renews_token
from pilot.doctor.node import program_version
from pilot.errors import PilotError, ServerError
from pilot.queuedata import Queue, QueueInfo, check_active
from pilot.server import legacy, v1
from pilot.server.auth import CredentialError
from pilot.server.faults import AuthRefusedError, NotServedError
from pilot.settings import SettingsError
from pilot.staging.copytool import CopyTool
from pilot.staging.toolbox import KIND

if TYPE_CHECKING:
    import ssl

#: Seconds that the clock may be off: from here on a person should know, and from there on tokens and certificates that
#: were just made are refused as not yet valid.
_CLOCK_WARNING, _CLOCK_FAILURE = 30.0, 300.0

#: Seconds to reach a storage.
_CONNECT_PATIENCE = 3.0

#: Ports of storages where the URL has none.
_PORTS = {"root": 1094, "xroot": 1094, "roots": 1094, "https": 443, "davs": 443, "http": 80, "dav": 80, "s3": 443}
_PORTS |= {"gsiftp": 2811, "srm": 8443}

#: Schemes that begin with TLS. (`roots` begins with words of its own.)
_TLS = ("https", "davs")

_UNTRUSTED = "its certificate is not trusted"


def server(patient: Patient) -> Finding | None:
    """The server answers, over TLS that we trust, and takes our credential."""
    if not patient.has_server:
        return None
    url = patient.settings.server
    try:
        answer = patient.reached().answer
        try:
            v1.resource_types().read(answer)
            return ok(f"{url} answers, v1 API")
        except NotServedError:
            call = legacy.resource_types()
            call.read(patient.ask(call.request()))
            return ok(f"{url} answers, legacy API")
    except ServerError as error:
        if _is_refused(error) and renews_token(patient):
            return warning(_without(url, error.detail), "the pilot has the token's key, and will let it be renewed")
        return failure(_without(url, error.detail), _server_advice(error))


def clock(patient: Patient) -> Finding | None:
    """Our clock against the `Date` of the server's answer, which has whole seconds."""
    try:
        reached = patient.reached() if patient.has_server else None
        date = parsedate_to_datetime(reached.answer.date).timestamp() if reached else 0.0
    except (ServerError, ValueError):  # no answer, or no date in it
        return None
    if reached is None:
        return None
    ahead = reached.time - date
    found = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server"
    advice = "set the clock: start chronyd or ntpd"
    if abs(ahead) > _CLOCK_FAILURE:
        return failure(found, advice)
    return warning(found, advice) if abs(ahead) > _CLOCK_WARNING else ok(found)


def queue(patient: Patient) -> Finding | None:
    """The queue's description can be read, is right, and the queue takes pilots."""
    if not patient.has_queue:
        return None
    try:
        info = patient.queue()
        check_active(info.queue)
        patient.settings.with_queue(info.queue.params)
    except PilotError as error:
        return failure(error.detail, "see -q and --queuedata-url, or the queue in CRIC")
    except SettingsError as error:
        return failure(str(error), "correct the params of the queue")
    return ok(f"{info.queue.name} is {info.queue.state or 'ACTIVE'}, {info.queue.status or 'online'}, {info.origin}")


def copy_tools(patient: Patient) -> Finding:
    """The tools of the queue can work here; without a queue, which ones can."""
    info = patient.known_queue()
    described = info.queue if info else Queue()
    if described.has_middleware:
        return ok("none is needed on the node: files are moved by the middleware of the queue")
    wanted = described.acopytools or ({"default": tuple(described.copytools)} if described.copytools else {})
    names = sorted({name for tools in wanted.values() for name in tools} or plugins.names(KIND))
    working, problems = _tools(patient, described, names)
    good = ", ".join(map(_with_versions, working)) or "none"
    bad = "".join(f"; {why}" for why in problems.values())
    if not wanted:
        return ok(f"can work here: {good}{bad}")
    for activity, tools in wanted.items():
        if all(name in problems for name in tools):
            return failure(f"no tool for {activity}{bad}", "install one of them, or correct acopytools of the queue")
    lacks = {plugin.name: plugin.problem for plugin in plugins.listing(KIND, CopyTool) if plugin.problem}
    bad += "".join(f"; {name} {why}" for name, why in lacks.items() if name in names and name not in problems)
    return warning(f"{good}{bad}", "install what is missing") if bad else ok(good)


def storages(patient: Patient) -> Finding | None:
    """The hosts of the queue's storages are known and let us connect, by TLS that we trust where that is their way."""
    info = patient.known_queue()
    endpoints = sorted({name for names in info.queue.astorages.values() for name in names}) if info else []
    if info is None or not endpoints:
        return None
    places = {name: _places(info, name) for name in endpoints}
    urls = sorted({url for found in places.values() for url in found})
    trust = Once(lambda: patient.tls().context())
    answers = in_threads([partial(_reach, url, trust) for url in urls], _CONNECT_PATIENCE + 0.5)
    why = {url: "no answer" if text is None else text for url, text in zip(urls, answers, strict=True)}
    lost = [name for name in endpoints if all(why[url] for url in places[name])]
    bad = [f"{url} ({why[url]})" for url in urls if why[url]]
    bad += [f"{name} has no protocol" for name in endpoints if not places[name]]
    if not bad:
        return ok(f"{', '.join(endpoints)}: {len(urls)} reached")
    advice = "ask for these ports to be opened, or correct the storages in CRIC"
    if any(_UNTRUSTED in why[url] for url in urls):
        advice = "install the CAs of these storages, or name their directory with --capath"
    # Behind a proxy nothing is reached directly, and need not be.
    proxied = any(name.lower().endswith("_proxy") for name in patient.environ)
    found = f"not reached: {', '.join(bad)}"
    return failure(found, advice) if lost == endpoints and not proxied else warning(found, advice)


def _is_refused(error: ServerError) -> bool:
    return isinstance(error, CredentialError | AuthRefusedError)


def _server_advice(error: ServerError) -> str:
    if _is_refused(error) or " alert " in error.detail:  # how TLS tells that the server does not take our certificate
        return "renew the token or the proxy; see PANDA_AUTH_TOKEN, PANDA_AUTH_ORIGIN and X509_USER_PROXY"
    if isinstance(error, NotServedError):
        return "this is no PanDA server: correct --url and -p"
    if "is not trusted" in error.detail:
        return "install the CA of the server, or name its directory with --capath"
    if "HTTP 403" in error.detail:
        return "the server's firewall or rights keep us out: ask its operators"
    return "see --url, -p, the firewall, and whether the server wants a proxy"


def _without(url: str, detail: str) -> str:
    """With the server's address once."""
    return detail if url in detail else f"{url}: {detail}"


def _tools(patient: Patient, described: Queue, names: Iterable[str]) -> tuple[list[CopyTool], dict[str, str]]:
    """Those that can work here, and why the others cannot."""
    box = make_tools(patient.settings, described, patient.launch_dir, patient.environ)
    tools, problems = [], {}
    for name in names:
        try:
            tools.append(box.get(name))
        except PilotError as error:
            problems[name] = error.detail
    return tools, problems


def _with_versions(tool: CopyTool) -> str:
    found = []
    for name in tool.works_by:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if shutil.which(name):
                found.append(program_version(name))
    return f"{tool.name} ({', '.join(found)})" if found else tool.name


def _places(info: QueueInfo, endpoint: str) -> set[str]:
    """`scheme://host:port` of a storage's protocols, or `file:///path`."""
    try:
        protocols = [way for ways in info.storage(endpoint).arprotocols.values() for way in ways]
    except PilotError:
        return set()
    return {_place(way.endpoint, way.path) for way in protocols}


def _place(endpoint: str, path: str) -> str:
    parts = urlsplit(endpoint)
    return f"file://{path}" if parts.scheme == "file" else f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _reach(url: str, trust: Callable[[], ssl.SSLContext]) -> str:
    """Why it cannot be reached; empty if it can."""
    import ssl

    try:
        parts = urlsplit(url)
        if parts.scheme == "file":
            return "" if Path(unquote(parts.path)).exists() else "not there"
        port = parts.port or _PORTS.get(parts.scheme)
        if port is None:
            socket.getaddrinfo(parts.hostname, None)
            return ""
        with socket.create_connection((parts.hostname or "", port), _CONNECT_PATIENCE) as connection:
            if parts.scheme in _TLS:
                trust().wrap_socket(connection, server_hostname=parts.hostname).close()
    except TimeoutError:
        return "no answer"
    except ssl.SSLCertVerificationError as error:
        return f"{_UNTRUSTED}: {error.verify_message}"
    except PilotError as error:
        return error.detail
    except (OSError, ValueError) as error:
        return (error.strerror if isinstance(error, OSError) else None) or str(error)
    return ""
