"""The settings of a pilot, in one table: defaults < experiment < file < queue < environment < flags.

Each line of the table is all there is to a setting: add one and it is a flag, a variable, a key in the file, a line of
the help and of the docs (`python -m pilot.settingsdoc > docs/settings.md`). Options keep the names Pilot 3 gives them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any, NamedTuple

from pilot.option import (
    FACTOR,
    FILE,
    FOLDER,
    KILOBYTES,
    LOWER,
    NAME,
    PLACE,
    PORT,
    RESOURCE_TYPE,
    SERVER,
    SIGNAL,
    SIZE,
    URL,
    WHOLE_SECONDS,
    Group,
    Option,
    SettingsError,
    one_of,
    opt,
)

__all__ = ["TABLE", "Origin", "Rank", "Row", "Settings", "SettingsError"]

_WHAT, _SERVER, _WHERE, _LIMITS, _HARVESTER = (
    Group.WHAT,
    Group.SERVER,
    Group.WHERE,
    Group.LIMITS,
    Group.HARVESTER,
)
_WORKFLOW = one_of(
    *("generic", "generic_hpc", "production", "production_hpc", "analysis", "analysis_hpc"),
    *("eventservice_hpc", "stager", "payload_stageout"),
)


class Rank(IntEnum):
    """Who may overrule whom: the higher rank wins."""

    DEFAULT = 0
    EXPERIMENT = 1
    FILE = 2
    QUEUE = 3
    ENVIRONMENT = 4
    FLAG = 5


class Origin(NamedTuple):
    """Where a value came from: its rank, and the place in words."""

    rank: Rank
    place: str


class Row(NamedTuple):
    """One setting as shown to a person; what may hold a password is `***`."""

    name: str
    value: str
    source: str


class _Change(NamedTuple):
    name: str
    value: Any
    origin: Origin


_DEFAULT = Origin(Rank.DEFAULT, "default")


# No __eq__ and __repr__ of 90 fields: to make them takes 2 ms of each start.
@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Settings:
    """What a pilot was told. Sizes are bytes, times are seconds.

    Attributes:
        origins: where each value came from that is not the default.
        notes: what the user should hear of how they were read.
    """

    # fmt: off
    queue: str = opt("", "PanDA queue", "-q --queue", kind=NAME, group=_WHAT, required=True)
    pilot_user: str = opt("generic", "experiment; case does not count", "--pilot-user", kind=LOWER, group=_WHAT,
                          required=True)
    job_label: str = opt("ptest", "kind of jobs to ask for (prodSourceLabel)", "-j --joblabel", kind=NAME, group=_WHAT)
    resource_type: str = opt("", "resource type of the jobs to ask for: SCORE, MCORE, SCORE_*, MCORE_*",
                             "--resource-type", kind=RESOURCE_TYPE, group=_WHAT)
    version_tag: str = opt("PR", "PR, RC, RCM or ALRB; part of the pilot's id", "-i --versiontag", kind=NAME,
                           group=_WHAT)

    url: str = opt("", "PanDA server", "--url", kind=SERVER, group=_SERVER)
    port: int = opt(25443, "its port, unless the URL names one; 0: the scheme's own", "-p --port", kind=PORT,
                    group=_SERVER)
    queuedata_url: str = opt("", "JSON of the queue; {pandaqueue} in it stands for the queue's name", "--queuedata-url",
                             ini="Information.queuedata_url", kind=PLACE, group=_SERVER)
    storagedata_url: str = opt("", "JSON of the storages", "--storagedata-url", "STORAGEDATA_SERVER_URL", kind=PLACE,
                               group=_SERVER)
    server_api: str = opt("auto", "generation of the server's API", "--server-api", ini="Pilot.server_api",
                          kind=one_of("auto", "v1", "legacy"), group=_SERVER, new=True)
    cacert: str = opt("", "client certificate with its key, commonly a proxy", "--cacert", "X509_USER_PROXY", kind=FILE,
                      group=_SERVER)
    capath: str = opt("", "directory of the CAs to trust", "--capath", "X509_CERT_DIR", kind=FOLDER, group=_SERVER)
    allow_http: bool = opt(False, "allow plain http, which shows jobs and tokens to the network; without this only to "
                           "loopback", "--allow-http", ini="Pilot.allow_http", sets=True, group=_SERVER, new=True)

    workdir: str = opt("", "directory to make the pilot's own in; none: work in the current one", "-a --workdir",
                       kind=FOLDER, group=_WHERE)
    cleanup: bool = opt(True, "remove the directories of jobs and pilot at the end", "--cleanup", group=_WHERE)
    input_dir: str = opt("", "where inputs lie already", "--input-dir", kind=FOLDER, group=_WHERE)
    output_dir: str = opt("", "where to leave outputs", "--output-dir", kind=FOLDER, group=_WHERE)
    mv_stagein: str = opt("link", "how the mv tool brings an input", "--mv-stagein", ini="Pilot.mv_stagein",
                          kind=one_of("link", "copy", "move"), queue="pilot_mv_stagein", group=_WHERE, new=True)
    mv_stageout: str = opt("move", "how the mv tool takes an output out", "--mv-stageout", ini="Pilot.mv_stageout",
                           kind=one_of("move", "copy", "link"), queue="pilot_mv_stageout", group=_WHERE, new=True)
    mv_replace: bool = opt(False, "mv replaces files at the destination; pilot local does", ini="Pilot.mv_replace",
                           group=_WHERE, new=True)

    early_stageout: str = opt("off", "outputs leave while the payload runs: when closed or renamed, or when listed in "
                              "its manifest", "--early-stageout", ini="Pilot.early_stageout", group=_WHERE, new=True,
                              kind=one_of("off", "closed", "manifest"), queue="pilot_early_stageout")
    early_manifest: str = opt("finished_outputs.txt", "file in which a payload lists finished outputs", new=True,
                              ini="Pilot.early_manifest", queue="pilot_early_manifest", kind=NAME, group=_WHERE)
    early_quiet: float = opt(10.0, "a closed output must be left alone for so long", ini="Pilot.early_quiet",
                             queue="pilot_early_quiet", group=_WHERE, new=True)
    keep_undelivered: str = opt("", "directory for outputs that no storage took, for later pilots to deliver; none: "
                                "they are lost", "--keep-undelivered", ini="Pilot.keep_undelivered",
                                queue="pilot_keep_undelivered", kind=FOLDER, group=_WHERE, new=True)
    input_cache: str = opt("", "directory for inputs to keep for later jobs; none: keep none", "--input-cache",
                           ini="Pilot.input_cache", kind=FOLDER, queue="pilot_input_cache", group=_WHERE, new=True)
    input_cache_size: int = opt(20 << 30, "all of them together", "--input-cache-size", ini="Pilot.input_cache_size",
                                kind=SIZE, queue="pilot_input_cache_size", group=_WHERE, new=True)
    input_cache_mode: str = opt("copy", "what a job gets; with link a payload that changes its input changes that of "
                                "others", ini="Pilot.input_cache_mode", kind=one_of("copy", "link"),
                                queue="pilot_input_cache_mode", group=_WHERE, new=True)

    lifetime: int = opt(324_000, "how long the pilot may live", "-l --lifetime", "PANDAPILOT_LIFETIME",
                        kind=WHOLE_SECONDS, group=_LIMITS)
    getjob_requests: int = opt(2, "how often in a row to ask for a job", "-v --getjobrequests", group=_LIMITS)
    getjob_failures: int = opt(5, "how many of these requests may fail", "-x --getjobfailures", group=_LIMITS)
    stageout_attempts: int = opt(1, "tries for each output", "--stageout-attempts", queue="pilot_stageout_attempts",
                                 group=_LIMITS)
    parallel_transfers: int = opt(4, "files of a job that move at once", "--parallel-transfers", new=True,
                                  ini="Pilot.parallel_transfers", queue="pilot_parallel_transfers", group=_LIMITS)
    storage_transfers: int = opt(0, "of these, with one storage at most; 0: as many as in all", "--storage-transfers",
                                 ini="Pilot.storage_transfers", queue="pilot_storage_transfers", group=_LIMITS,
                                 new=True)
    grace: float = opt(25.0, "from a stop signal to the end of the pilot", "--grace", ini="Pilot.grace",
                       queue="pilot_grace", group=_LIMITS, new=True)
    soft_stop_signal: str = opt("", "signal that tells a payload that its time is nearly over, such as USR1",
                                "--soft-stop-signal", ini="Pilot.soft_stop_signal", queue="pilot_soft_stop_signal",
                                kind=SIGNAL, group=_LIMITS, new=True)
    soft_stop_lead: float = opt(300.0, "from that signal to the end of the payload", "--soft-stop-lead",
                                ini="Pilot.soft_stop_lead", queue="pilot_soft_stop_lead", group=_LIMITS, new=True)
    heartbeat: float = opt(1800.0, "longest time between two updates of a job", "--heartbeat", ini="Pilot.heartbeat",
                           queue="pilot_heartbeat", group=_LIMITS, new=True)

    harvester_submitmode: str = opt("PULL", "whether the pilot fetches jobs (PULL) or is given them (PUSH)",
                                    "--harvester-submit-mode", kind=one_of("PULL", "PUSH"), group=_HARVESTER)
    harvester_workdir: str = opt("", "Harvester's work directory", "--harvester-workdir", kind=FOLDER, group=_HARVESTER)
    harvester_datadir: str = opt("", "Harvester's data directory", "--harvester-datadir", kind=FOLDER, group=_HARVESTER)
    harvester_eventstatusdump: str = opt("", "file to list outputs in", "--harvester-eventstatusdump", kind=FILE,
                                         group=_HARVESTER)
    harvester_workerattributes: str = opt("", "file to report jobs in", "--harvester-workerattributes", kind=FILE,
                                          group=_HARVESTER)

    debug: bool = opt(False, "log more", "-d --debug", sets=True)
    nopilotlog: bool = opt(False, "do not write pilotlog.txt", "--no-pilot-log", sets=True)
    config: str = opt("", "file with settings", "--config", "HARVESTER_PILOT_CONFIG", kind=FILE, new=True)
    show_settings: bool = opt(False, "print every setting and where it came from, then end", "--show-settings",
                              sets=True, new=True)
    jobtype: str = opt("", "job type to ask for", "--job-type", kind=NAME)
    country_group: str = opt("", "country group to ask for", "--country-group", kind=NAME)
    working_group: str = opt("", "working group to ask for", "--working-group", kind=NAME)
    allow_other_country: bool = opt(False, "take jobs of other countries too", "--allow-other-country")
    allow_same_user: bool = opt(True, "take further jobs from the same task only", "--allow-same-user")
    baseurls: str = opt("", "where transformations may come from, comma list", "-g --baseurls", "PANDA_BASE_URLS",
                        kind=URL)
    update_server: bool = opt(True, "do not speak to the server", "-z --noserverupdate", sets=False)
    workerpilotstatusupdate: bool = opt(True, "do not report that the worker started or finished",
                                        "-k --noworkerpilotstatusupdate", sets=False)
    use_https: bool = opt(True, "https for a server given without a scheme, else http", "--use-https")
    pandaserver: str = opt("https://pandaserver.cern.ch:25443", "PanDA server without --url", ini="Pilot.pandaserver",
                           kind=SERVER)
    # Pilot 3 waits 100 s to connect. Who listens answers in milliseconds, and what is lost is sent again after 1, 3, 7
    # and 15 s by the kernel: nothing new comes before 31 s. A next try from us is better, and 20 s fit into a grace.
    http_connect_timeout: float = opt(20.0, "to connect to the server", ini="Pilot.http_connect_timeout")
    http_timeout: float = opt(120.0, "for an answer of the server", ini="Pilot.http_maxtime")
    # After 2 h without an update the server gives a job up: nobody waits for a report that comes later.
    final_report_timeout: float = opt(7200.0, "how long to try a final report", ini="Pilot.final_report_timeout",
                                      new=True)
    getjob_retry_wait: float = opt(60.0, "wait after a request for a job without an answer",
                                   ini="Pilot.getjob_retry_wait", new=True)
    no_job_wait_min: float = opt(60.0, "wait when there is no job, at least; drawn at random", new=True,
                                 ini="Pilot.no_job_wait_min", queue="pilot_no_job_wait_min")
    no_job_wait_max: float = opt(180.0, "wait when there is no job, at most", new=True,
                                 ini="Pilot.no_job_wait_max", queue="pilot_no_job_wait_max")
    debug_heartbeat: float = opt(60.0, "time between two updates in debug mode", ini="Pilot.debug_heartbeat")
    lost_heartbeat: float = opt(10_800.0, "give a job up when no update arrived for so long",
                                ini="Pilot.lost_heartbeat")
    cache_dir: str = opt("", "where queue and storage JSON are kept", ini="Information.cache_dir", kind=FOLDER)
    schedconf_file: str = opt("", "JSON of the queue, asked first", env="LOCAL_AGIS_SCHEDCONF", kind=FILE)
    queuedata_cvmfs: str = opt("", "JSON of all queues on CVMFS", ini="Information.queuedata_cvmfs", kind=FILE)
    queues_url: str = opt("", "JSON of the queue at CRIC", ini="Information.queues_url", kind=PLACE)
    queues_cvmfs: str = opt("", "JSON of all queues of CRIC on CVMFS", ini="Information.queues_cvmfs", kind=FILE)
    storages_url: str = opt("", "JSON of all storages at CRIC", ini="Information.storages_url", kind=PLACE)
    storages_cvmfs: str = opt("", "JSON of all storages on CVMFS", ini="Information.storages_cvmfs", kind=FILE)
    cvmfs_base: str = opt("/cvmfs", "where CVMFS is, CVMFS_PATH in a file name", env="ATLAS_SW_BASE", kind=FOLDER)
    checksum_type: str = opt("adler32", "checksum of outputs", ini="File.checksum_type", kind=one_of("adler32", "md5"),
                             queue="pilot_checksum_type")
    free_space_limit: int = opt(2 << 30, "free disk without which no job is taken", ini="Pilot.free_space_limit",
                                kind=SIZE, queue="pilot_free_space_limit")
    free_space_limit_running: int = opt(1 << 30, "free disk without which a job is ended", kind=SIZE,
                                        ini="Pilot.free_space_limit_running", queue="pilot_free_space_limit_running")
    maximum_input_file_sizes: int = opt(14_336 << 20, "inputs of a job together, when the queue does not say",
                                        ini="Pilot.maximum_input_file_sizes", kind=SIZE)
    # A tape may take hours before the first byte, and a full line between two bytes: from the first byte on, 5 minutes
    # of nothing are a broken connection, and 10 kB/s would take a day for each GB.
    transfer_idle: float = opt(300.0, "a transfer that has begun and moves no byte for so long is tried anew; 0: never",
                               ini="Pilot.transfer_idle", queue="pilot_transfer_idle", new=True)
    transfer_min_speed: int = opt(10 << 10, "bytes per second that a transfer must keep up once it has begun; 0: any",
                                  ini="Pilot.transfer_min_speed", kind=SIZE, queue="pilot_transfer_min_speed", new=True)
    transfer_speed_window: float = opt(300.0, "time over which that speed is averaged", new=True,
                                       ini="Pilot.transfer_speed_window", queue="pilot_transfer_speed_window")
    progress_interval: float = opt(60.0, "time between two lines of progress in the log while files move; 0: none",
                                   ini="Pilot.progress_interval", queue="pilot_progress_interval", new=True)

    maximum_output_file_size: int = opt(500 << 30, "largest output", ini="Pilot.maximum_output_file_size", kind=SIZE)
    local_size_limit_stdout: int = opt(2 << 30, "largest stdout of a payload; the file says it in kB", kind=KILOBYTES,
                                       ini="Pilot.local_size_limit_stdout")
    looping_limit: float = opt(7200.0, "a payload that wrote nothing for so long is ended",
                               ini="Pilot.looping_limit_default", queue="pilot_looping_limit")
    looping_verification_time: float = opt(900.0, "time between two looks for that",
                                           ini="Pilot.looping_verification_time")
    kill_for_memory: bool = opt(False, "end jobs that use more memory than their resource type allows",
                                ini="Pilot.kill_for_memory", queue="pilot_kill_for_memory", new=True)
    max_processes: int = opt(0, "most processes of a payload; 0 for no limit", ini="Pilot.max_processes",
                             queue="pilot_max_processes", new=True)
    meter: str = opt("auto", "what measures payloads: procfs, cgroup, prmon; auto takes cgroup where there is one",
                     "--meter", ini="Pilot.meter", kind=LOWER, queue="pilot_meter", new=True)
    cgroup: str = opt("auto", "control group to make those of payloads in; auto: our own if it is ours to use; off",
                      "--cgroup", ini="Pilot.cgroup", kind=FOLDER, new=True)
    enable_delay_to_get_job: bool = opt(False, "take no job while the node is busy",
                                        env="PILOT_ENABLE_DELAY_TO_GET_JOB", ini="Pilot.enable_delay_to_get_job")
    load_factor: float = opt(1.2, "load per core above which a node is busy", env="PILOT_LOAD_FACTOR",
                             ini="Pilot.load_factor", kind=FACTOR)
    cvmfs: bool = opt(True, "do not check CVMFS", "-b --nocvmfs", sets=False)
    verify_proxy: bool = opt(True, "do not check the proxy or token", "-t --noproxyverification", sets=False)
    # ATLAS gives 72 h less 20 min of grace to a pilot that may run many jobs (PILOT3 7.7).
    proxy_limit: float = opt(3600.0, "life that a proxy must have left for a job to be taken", ini="Pilot.proxy_limit",
                             new=True)
    payload_proxy: str = opt("none", "X.509 proxy of payloads: none, the pilot's, or a user's from the server for "
                             "analysis jobs", ini="Pilot.payload_proxy", kind=one_of("none", "pilot", "server"),
                             queue="pilot_payload_proxy", new=True)
    # With Pilot 3 this flag switched the check off, against its name (PILOT3 10.5, 41).
    verify_payload_proxy: bool = opt(True, "check the payload's proxy (Pilot 3 did not check it with this flag)",
                                     "-u --verifypayloadproxy", sets=True)
    token_renewal: bool = opt(True, "do not renew the token", "-y --notokenrenewal", sets=False)
    use_rucio_traces: bool = opt(True, "send a trace for each transfer", "--use-rucio-traces")
    catalogue: str = opt("", "where replicas are asked for and outputs registered: rucio; none: nowhere", "--catalogue",
                         ini="Pilot.catalogue", kind=LOWER, queue="pilot_catalogue", new=True)
    register: bool = opt(False, "register outputs in the catalogue; otherwise the PanDA server does that", "--register",
                         ini="Pilot.register", sets=True, queue="pilot_register", new=True)
    catalogue_close: bool = opt(False, "close the datasets that outputs were registered in", new=True,
                                ini="Pilot.catalogue_close", queue="pilot_catalogue_close")
    rucio_host: str = opt("", "Rucio server", "--rucio-host", ini="Rucio.host", kind=URL)
    rucio_traces_url: str = opt("", "where traces go; none: they are not sent", ini="Rucio.url", kind=URL,
                                queue="pilot_rucio_traces_url")
    trace_user_dn: bool = opt(False, "traces name the user, not only a hash of the name", ini="Rucio.trace_user_dn",
                              new=True)
    remote_open_timeout: float = opt(60.0, "to see that an input which the payload reads over the network is there; 0: "
                                     "not looked", ini="Pilot.remote_open_timeout", new=True,
                                     queue="pilot_remote_open_timeout")
    use_realtime_logging: bool = opt(False, "send the payload's log while it runs", "--use-realtime-logging", sets=True,
                                     env="USE_REALTIME_LOGGING")
    realtime_logging_server: str = opt("", "where it goes: google-cloud-logging or logserver=TYPE;PROTOCOL://HOST:PORT",
                                       "--realtime-logging-server", env="REALTIME_LOGGING_SERVER")
    realtime_logname: str = opt("pilot-log", "name of the log there", "--realtime-logname", kind=NAME,
                                env="REALTIME_LOGNAME")
    realtime_logfiles: str = opt("", "files to send, separated by : or ,", env="REALTIME_LOGFILES REALTIME_LOGFILE")
    realtime_rate: float = opt(0.0, "lines per second of a job that are sent, on average; 0: all", "--realtime-rate",
                               ini="Pilot.realtime_rate", queue="pilot_realtime_rate", kind=FACTOR, new=True)
    rtlogging: str = opt("", "where live logs go when neither option nor queue says", ini="Pilot.rtlogging")
    payload_variables: str = opt("", "more variables of the node that payloads get, comma list", "--payload-variables",
                                 ini="Payload.variables", queue="pilot_payload_variables", new=True)
    problem_matchers: str = opt("", "JSON or YAML file with problem matchers, or the JSON itself (docs/failures.md)",
                                "--problem-matchers", ini="Payload.problem_matchers", kind=PLACE, new=True,
                                queue="pilot_problem_matchers")
    hooks: str = opt("", "directory of programs to run around each phase of a job (docs/hooks.md)", "--hooks",
                     ini="Pilot.hooks", kind=FOLDER, queue="pilot_hooks", new=True)
    hook_timeout: float = opt(60.0, "longest time of one of them", ini="Pilot.hook_timeout",
                              queue="pilot_hook_timeout", new=True)
    container_setup: str = opt("auto", "how apptainer is started: alrb, ATLAS' wrapper; direct; auto: alrb where it is",
                               "--container-setup", ini="Container.setup_type", new=True,
                               kind=one_of("auto", "alrb", "direct"))
    container_options: str = opt("", "options of the container runtime when the queue gives none",
                                 ini="Container.options", new=True)
    container_program: str = opt("", "the container runtime's program; none: the first in PATH", "--container-program",
                                 ini="Container.program", kind=FILE, new=True)
    container_gpu: str = opt("auto", "whether containers get the GPUs: on, off; auto: as queue and job say",
                             "--container-gpu", ini="Container.gpu", queue="pilot_container_gpu", new=True,
                             kind=one_of("auto", "on", "off"))
    middleware_container: str = opt("el9", "image or platform in which files are staged, where the queue says so",
                                    ini="Container.middleware_container", queue="pilot_middleware_container", new=True)
    middleware_setup: str = opt("", "shell commands that bring the clients there", ini="Container.middleware_setup",
                                queue="pilot_middleware_setup", new=True)
    redirectstdout: str = opt("", "file for the pilot's stdout", "--redirect-stdout", kind=FILE)
    pod: bool = opt(False, "the pilot runs in a Kubernetes pod: its lifetime counts instead of maxtime of the queue, "
                    "and the pod's disk for maxwdir", "--pod", sets=True)
    alive_socket: str = opt("", "Unix socket on which `pilot alive` asks how the pilot is; none: nobody can",
                            "--alive-socket", "PILOT_ALIVE_SOCKET", kind=FILE, new=True)
    workflow: str = opt("generic", "what kind of pilot to be", "-w --workflow", kind=_WORKFLOW, later="other workflows")
    leasetime: int = opt(3600, "lease of staged files", "-L --leasetime", kind=WHOLE_SECONDS, later="other workflows")
    input_destination_dir: str = opt("", "where to stage inputs", "--input-destination-dir", kind=FOLDER,
                                     later="other workflows")
    hpc_resource: str = opt("", "HPC to run on", "--hpc-resource", kind=NAME, later="other workflows")
    hpc_mode: str = opt("manytoone", "manytoone or jumbojobs", "--hpc-mode", kind=NAME, later="other workflows")
    executor_type: str = opt("generic", "how events are run", "--es-executor-type", kind=NAME, later="event service")
    subscribe_to_msgsvc: bool = opt(False, "take orders from a message broker", "--subscribe-to-msgsvc", sets=True,
                                    later="message broker")
    resource: str = opt("", "obsolete: the queue is enough", "-r --resource", kind=NAME, group=Group.UNUSED)
    site: str = opt("", "obsolete: the queue is enough", "-s --site", kind=NAME, group=Group.UNUSED)
    # fmt: on
    origins: Mapping[str, Origin] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.no_job_wait_min > self.no_job_wait_max:
            places = f"{self._origin('no_job_wait_min').place}, {self._origin('no_job_wait_max').place}"
            raise SettingsError(f"no_job_wait_min is above no_job_wait_max ({places})")

    def __repr__(self) -> str:
        """What is not the default; never a password."""
        return f"Settings({', '.join(f'{row.name}={row.value}' for row in self.explain() if row.name in self.origins)})"

    @classmethod
    def load(cls, argv: Sequence[str], environ: Mapping[str, str], prog: str = "pilot run") -> Settings:
        """The settings of a command line (without the command itself) in an environment.

        Raises:
            SystemExit: with 2 and one line on stderr for a bad flag; with 0 after `--help`.
            SettingsError: for a bad value in the file or the environment.
        """
        from pilot.flags import run_parser

        return cls.from_flags(vars(run_parser(TABLE, prog).parse_args(argv)), environ)

    @classmethod
    def from_flags(cls, given: Mapping[str, Any], environ: Mapping[str, str]) -> Settings:
        """The same from flags that were parsed before, such as `vars()` of a namespace; other names are passed over."""
        flags = {name: value for name, value in given.items() if name in TABLE}
        environment = list(_from_environment(environ))
        path = flags.get("config") or next((change.value for change in environment if change.name == "config"), "")
        texts, notes = _read_file(path)
        settings = cls(notes=notes)._changed(_from_file(path, texts, environ))
        return settings._changed(environment)._changed(_from_flags(flags))

    def with_experiment(self, values: Mapping[str, Any], experiment: str) -> Settings:
        """With the values of an experiment in place of defaults: names of settings to typed values."""
        origin = Origin(Rank.EXPERIMENT, f"experiment {experiment}")
        return self._changed(_Change(name, value, origin) for name, value in values.items())

    def with_node(self, name: str, value: Any, origin: str) -> Settings:
        """With what the node says in place of the default of one setting; `origin` in words."""
        return self._changed([_Change(name, value, Origin(Rank.EXPERIMENT, origin))])

    def with_queue(self, overrides: Mapping[str, Any]) -> Settings:
        """With what the `params` of a queue set; keys that are no settings are passed over, flags and environment win.

        Raises:
            SettingsError: for a value that is none of its kind.
        """
        return self._changed(_from_queue(overrides))

    @property
    def server(self) -> str:
        """Base URL of the PanDA server, without a slash at the end.

        As in Pilot 3: a port in the URL wins over `--port`; without `--url` it is `pandaserver`, port and all.
        """
        from urllib.parse import urlsplit

        text = self.url or self.pandaserver
        if "://" not in text:
            text = f"{'https' if self.use_https else 'http'}://{text}"
        parts = urlsplit(text)
        port = f":{self.port}" if self.url and self.port and parts.port is None else ""
        return f"{parts.scheme}://{parts.netloc.rstrip(':')}{port}{parts.path}".rstrip("/")

    def later(self) -> list[str]:
        """What was asked for and is not there yet, as `option (feature)`.

        Switching off what is not there, or giving the default, asks for nothing; nor do defaults of an experiment.
        """
        return [f"{option.label} ({option.later})" for name, option in TABLE.items() if self._waits(name, option)]

    def warnings(self) -> list[str]:
        """Lines for the log at the start of the pilot."""
        waiting = self.later()
        return [*self.notes, *(["accepted, but not used yet: " + ", ".join(waiting)] if waiting else [])]

    def explain(self) -> list[Row]:
        """Every setting, its value and where it came from."""
        return [self.explained(name) for name in TABLE]

    def explained(self, name: str) -> Row:
        """One of them."""
        return Row(name, TABLE[name].show(getattr(self, name)), self._origin(name).place)

    def _origin(self, name: str) -> Origin:
        return self.origins.get(name, _DEFAULT)

    def _waits(self, name: str, option: Option) -> bool:
        value = getattr(self, name)
        if not option.later or value is False or self._origin(name).rank is Rank.EXPERIMENT:
            return False
        said = isinstance(value, bool) and self._origin(name).rank is Rank.FLAG
        return said or bool(value != option.default)

    def _changed(self, changes: Iterable[_Change]) -> Settings:
        """With those changes that come from a place of the same or a higher rank than the present value."""
        valid = [change for change in changes if change.origin.rank >= self._origin(change.name).rank]
        values = {change.name: change.value for change in valid}
        origins = {**self.origins, **{change.name: change.origin for change in valid}}
        return replace(self, **values, origins=origins)


#: Name of each setting to its option, in the order of help and docs.
TABLE: Mapping[str, Option] = MappingProxyType(
    {item.name: item.metadata["option"] for item in fields(Settings) if "option" in item.metadata}
)


def _read_file(path: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """`section.key` in lower case to text, and notes: as in Pilot 3 a file that is missing stops nothing."""
    if not path:
        return {}, ()
    from configparser import ConfigParser, Error

    parser = ConfigParser(interpolation=None)
    try:
        with open(path, encoding="utf-8") as stream:
            parser.read_file(stream)
    except FileNotFoundError:
        return {}, (f"there is no file {path}: its settings are the defaults",)
    except (OSError, UnicodeDecodeError, Error) as error:
        raise SettingsError(f"cannot read settings from {path}: {' '.join(str(error).split())}") from error
    texts = {f"{name}.{key}": value.strip() for name in parser.sections() for key, value in parser.items(name)}
    known = {option.ini.lower() for option in TABLE.values()}
    unknown = ", ".join(name for name in texts if name.lower() not in known)
    notes = (f"keys in {path} that no setting reads: {unknown}",) if unknown else ()
    return {name.lower(): text for name, text in texts.items()}, notes


def _from_file(path: str, texts: Mapping[str, str], environ: Mapping[str, str]) -> Iterator[_Change]:
    for name, option in TABLE.items():
        text = texts.get(option.ini.lower(), "")
        where = f"file {path}, {option.ini}"
        text = _resolved(text, environ, where)
        if text and text.lower() != "none":
            yield _Change(name, option.parse(text, where), Origin(Rank.FILE, where))


def _resolved(text: str, environ: Mapping[str, str], where: str) -> str:
    """A value `$NAME` or `${NAME}` stands for a variable of the environment."""
    found = re.fullmatch(r"\$\{?(\w+)\}?", text)
    if found is None:
        return text
    if found[1] not in environ:
        raise SettingsError(f"{where}: the environment has no variable {found[1]}")
    return environ[found[1]].strip()


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Change]:
    """A variable that is set but empty counts as not set: wrappers export those."""
    for name, option in TABLE.items():
        variable = next((variable for variable in option.env if environ.get(variable, "").strip()), "")
        if variable:
            where = f"environment {variable}"
            yield _Change(name, option.parse(environ[variable].strip(), where), Origin(Rank.ENVIRONMENT, where))


def _from_queue(overrides: Mapping[str, Any]) -> Iterator[_Change]:
    for name, option in TABLE.items():
        value = overrides.get(option.queue) if option.queue else None
        if value is not None:
            where = f"queue parameter {option.queue}"
            text = json.dumps(value) if isinstance(value, list | dict) else str(value)
            yield _Change(name, option.parse(text, where), Origin(Rank.QUEUE, where))


def _from_flags(flags: Mapping[str, Any]) -> Iterator[_Change]:
    for name, value in flags.items():
        yield _Change(name, value, Origin(Rank.FLAG, f"flag {TABLE[name].label}"))
