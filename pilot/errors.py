"""The table of error codes and the exceptions that carry them.

Numbers, names and texts are an interface: the server's retry rules match on them (PanDA Pilot 3.11.5.1,
`pilot/common/errorcodes.py`), so none is ever renumbered or reworded. `tests/contract/errorcodes.json` pins them.
"""

from __future__ import annotations

import signal
from enum import Enum, IntEnum

#: Longest diagnostic text the server stores (`pilot_error_diag`, `exe_error_diag`), characters.
DIAG_LIMIT = 500


class Code(IntEnum):
    """A pilot error code: the number on the wire, its name, and its fixed `text`."""

    text: str

    def __new__(cls, value: int, text: str) -> Code:
        """Make the number of the code and hang its text on it."""
        member = int.__new__(cls, value)
        member._value_ = value
        member.text = text
        return member

    GENERALERROR = 1008, "General pilot error, consult batch log"
    NOLOCALSPACE = 1098, "Not enough local space"
    STAGEINFAILED = 1099, "Failed to stage-in file"
    REPLICANOTFOUND = 1100, "Replica not found"
    NOSUCHFILE = 1103, "No such file or directory"
    USERDIRTOOLARGE = 1104, "User work directory too large"
    STDOUTTOOBIG = 1106, "Payload log or stdout file too big"
    SETUPFAILURE = 1110, "Failed during payload setup"
    NFSSQLITE = 1115, "NFS SQLite locking problems"
    QUEUEDATA = 1116, "Pilot could not download queuedata"
    QUEUEDATANOTOK = 1117, "Pilot found non-valid queuedata"
    OUTPUTFILETOOLARGE = 1124, "Output file too large"
    NOSTORAGE = 1133, "Fetching default storage failed: no activity related storage defined"
    STAGEOUTFAILED = 1137, "Failed to stage-out file"
    PUTMD5MISMATCH = 1141, "md5sum mismatch on output file"
    CHMODTRF = 1143, "Failed to chmod transform"
    PANDAKILL = 1144, "This job was killed by panda server"
    GETMD5MISMATCH = 1145, "md5sum mismatch on input file"
    TRFDOWNLOADFAILURE = 1149, "Transform could not be downloaded"
    LOOPINGJOB = 1150, "Looping job killed by pilot"
    STAGEINTIMEOUT = 1151, "File transfer timed out during stage-in"
    STAGEOUTTIMEOUT = 1152, "File transfer timed out during stage-out"
    NOPROXY = 1163, "Grid proxy not valid"
    MISSINGOUTPUTFILE = 1165, "Local output file is missing"
    SIZETOOLARGE = 1168, "Total file size too large"
    GETADMISMATCH = 1171, "adler32 mismatch on input file"
    PUTADMISMATCH = 1172, "adler32 mismatch on output file"
    NOVOMSPROXY = 1177, "Voms proxy not valid"
    GETGLOBUSSYSERR = 1180, "Globus system error during stage-in"
    PUTGLOBUSSYSERR = 1181, "Globus system error during stage-out"
    NOSOFTWAREDIR = 1186, "Software directory does not exist"
    NOPAYLOADMETADATA = 1187, "Payload metadata does not exist"
    LFNTOOLONG = 1190, "LFN too long (exceeding limit of 255 characters)"
    ZEROFILESIZE = 1191, "File size cannot be zero"
    MKDIR = 1199, "Failed to create directory"
    KILLSIGNAL = 1200, "Job terminated by unknown kill signal"
    SIGTERM = 1201, "Job killed by signal: SIGTERM"
    SIGQUIT = 1202, "Job killed by signal: SIGQUIT"
    SIGSEGV = 1203, "Job killed by signal: SIGSEGV"
    SIGXCPU = 1204, "Job killed by signal: SIGXCPU"
    USERKILL = 1205, "Job killed by user"
    SIGBUS = 1206, "Job killed by signal: SIGBUS"
    SIGUSR1 = 1207, "Job killed by signal: SIGUSR1"
    SIGINT = 1208, "Job killed by signal: SIGINT"
    MISSINGINSTALLATION = 1211, "Missing installation"
    PAYLOADOUTOFMEMORY = 1212, "Payload ran out of memory"
    REACHEDMAXTIME = 1213, "Reached batch system time limit"
    UNKNOWNPAYLOADFAILURE = 1220, "Job failed due to unknown reason (consult log file)"
    FILEEXISTS = 1221, "File already exists"
    BADALLOC = 1223, "Transform failed due to bad_alloc"
    ESRECOVERABLE = 1224, "Event service: recoverable error"
    ESFATAL = 1228, "Event service: fatal error"
    EXECUTEDCLONEJOB = 1234, "Clone job is already executed"
    PAYLOADEXCEEDMAXMEM = 1235, "Payload exceeded maximum allowed memory"
    FAILEDBYSERVER = 1236, "Failed by server"
    ESNOEVENTS = 1238, "Event service: no events"
    MESSAGEHANDLINGFAILURE = 1240, "Failed to handle message from payload"
    CHKSUMNOTSUP = 1242, "Query checksum is not supported"
    NORELEASEFOUND = 1244, "No release candidates found"
    NOUSERTARBALL = 1246, "User tarball could not be downloaded from PanDA server"
    BADXML = 1247, "Badly formed XML"
    NOTIMPLEMENTED = 1300, "The class or function is not implemented"
    UNKNOWNEXCEPTION = 1301, "An unknown pilot exception has occurred"
    CONVERSIONFAILURE = 1302, "Failed to convert object data"
    FILEHANDLINGFAILURE = 1303, "Failed during file handling"
    PAYLOADEXECUTIONFAILURE = 1305, "Failed to execute payload"
    SINGULARITYGENERALFAILURE = 1306, "Singularity/Apptainer: general failure"
    SINGULARITYNOLOOPDEVICES = 1307, "Singularity/Apptainer: No more available loop devices"
    SINGULARITYBINDPOINTFAILURE = 1308, "Singularity/Apptainer: Not mounting requested bind point"
    SINGULARITYIMAGEMOUNTFAILURE = 1309, "Singularity/Apptainer: Failed to mount image"
    PAYLOADEXECUTIONEXCEPTION = 1310, "Exception caught during payload execution"
    NOTDEFINED = 1311, "Not defined"
    NOTSAMELENGTH = 1312, "Not same length"
    NOSTORAGEPROTOCOL = 1313, "No protocol defined for storage endpoint"
    UNKNOWNCHECKSUMTYPE = 1314, "Unknown checksum type"
    UNKNOWNTRFFAILURE = 1315, "Unknown transform failure"
    RUCIOSERVICEUNAVAILABLE = 1316, "Rucio: Service unavailable"
    EXCEEDEDMAXWAITTIME = 1317, "Exceeded maximum waiting time"
    COMMUNICATIONFAILURE = 1318, "Failed to communicate with server"
    INTERNALPILOTPROBLEM = 1319, "An internal Pilot problem has occurred (consult Pilot log)"
    LOGFILECREATIONFAILURE = 1320, "Failed during creation of log file"
    RUCIOLOCATIONFAILED = 1321, "Failed to get client location for Rucio"
    RUCIOLISTREPLICASFAILED = 1322, "Failed to get replicas from Rucio"
    UNKNOWNCOPYTOOL = 1323, "Unknown copy tool"
    SERVICENOTAVAILABLE = 1324, "Service not available at the moment"
    SINGULARITYNOTINSTALLED = 1325, "Singularity: not installed"
    NOREPLICAS = 1326, "No matching replicas were found in list_replicas() output"
    UNREACHABLENETWORK = 1327, "Unable to stage-in file since network is unreachable"
    PAYLOADSIGSEGV = 1328, "SIGSEGV: Invalid memory reference or a segmentation fault"
    NONDETERMINISTICDDM = 1329, "Failed to construct SURL for non-deterministic ddm (update CRIC)"
    JSONRETRIEVALTIMEOUT = 1330, "JSON retrieval timed out"
    MISSINGINPUTFILE = 1331, "Input file is missing in storage element"
    BLACKHOLE = 1332, "Black hole detected in file system (consult Pilot log)"
    NOREMOTESPACE = 1333, "No space left on device"
    SETUPFATAL = 1334, "Setup failed with a fatal exception (consult Payload log)"
    MISSINGUSERCODE = 1335, "User code not available on PanDA server (resubmit task with --useNewCode)"
    JOBALREADYRUNNING = 1336, "Job is already running elsewhere"
    BADMEMORYMONITORJSON = 1337, "Memory monitor produced bad output"
    STAGEINAUTHENTICATIONFAILURE = 1338, "Authentication failure during stage-in"
    DBRELEASEFAILURE = 1339, "Local DBRelease handling failed (consult Pilot log)"
    SINGULARITYNEWUSERNAMESPACE = 1340, "Singularity/Apptainer: Failed invoking the NEWUSER namespace runtime"
    BADQUEUECONFIGURATION = 1341, "Bad queue configuration detected"
    MIDDLEWAREIMPORTFAILURE = 1342, "Failed to import middleware (consult Pilot log)"
    NOOUTPUTINJOBREPORT = 1343, "Found no output in job report"
    RESOURCEUNAVAILABLE = 1344, "Resource temporarily unavailable"
    SINGULARITYFAILEDUSERNAMESPACE = 1345, "Singularity/Apptainer: Failed to create user namespace"
    TRANSFORMNOTFOUND = 1346, "Transform not found"
    UNSUPPORTEDSL5OS = 1347, "Unsupported SL5 OS"
    SINGULARITYRESOURCEUNAVAILABLE = 1348, "Singularity/Apptainer: Resource temporarily unavailable"
    UNRECOGNIZEDTRFARGUMENTS = 1349, "Unrecognized transform arguments"
    EMPTYOUTPUTFILE = 1350, "Empty output file detected"
    UNRECOGNIZEDTRFSTDERR = 1351, "Unrecognized fatal error in transform stderr"
    STATFILEPROBLEM = 1352, "Failed to stat proc file for CPU consumption calculation"
    NOSUCHPROCESS = 1353, "CPU consumption calculation failed: No such process"
    GENERALCPUCALCPROBLEM = 1354, "General CPU consumption calculation problem (consult Pilot log)"
    COREDUMP = 1355, "Core dump detected"
    PREPROCESSFAILURE = 1356, "Pre-process command failed"
    POSTPROCESSFAILURE = 1357, "Post-process command failed"
    MISSINGRELEASEUNPACKED = 1358, "Missing release setup in unpacked container"
    PANDAQUEUENOTACTIVE = 1359, "PanDA queue is not active"
    IMAGENOTFOUND = 1360, "Image not found"
    REMOTEFILECOULDNOTBEOPENED = 1361, "Remote file could not be opened"
    XRDCPERROR = 1362, "Xrdcp was unable to open file"
    KILLPAYLOAD = 1363, "Raythena has decided to kill payload"
    MISSINGCREDENTIALS = 1364, "Unable to locate credentials for S3 transfer"
    NOCTYPES = 1365, "Python module ctypes not available on worker node"
    CHECKSUMCALCFAILURE = 1366, "Failure during checksum calculation"
    COMMANDTIMEDOUT = 1367, "Command timed out"
    REMOTEFILEOPENTIMEDOUT = 1368, "Remote file open timed out"
    FRONTIER = 1369, "Frontier error"
    VOMSPROXYABOUTTOEXPIRE = 1370, "VOMS proxy is about to expire"
    BADOUTPUTFILENAME = 1371, "Output file name contains illegal characters"
    APPTAINERNOTINSTALLED = 1372, "Apptainer: not installed"
    CERTIFICATEHASEXPIRED = 1373, "Certificate has expired"
    REMOTEFILEDICTDOESNOTEXIST = 1374, "Remote file open dictionary does not exist"
    LEASETIME = 1375, "Lease time is up"
    LOGCREATIONTIMEOUT = 1376, "Log file creation timed out"
    CVMFSISNOTALIVE = 1377, "CVMFS is not responding"
    LSETUPTIMEDOUT = 1378, "Lsetup command timed out during remote file open"
    PREEMPTION = 1379, "Job was preempted"
    ARCPROXYFAILURE = 1380, "General arcproxy failure"
    ARCPROXYLIBFAILURE = 1381, "Arcproxy failure while loading shared libraries"
    PROXYTOOSHORT = 1382, "Proxy is too short"
    STAGEOUTAUTHENTICATIONFAILURE = 1383, "Authentication failure during stage-out"
    QUEUENOTSETUPFORCONTAINERS = 1384, "Queue is not set up for containers"
    NOJOBSINPANDA = 1385, "No jobs in PanDA"
    PANDAQUEUENOTONLINE = 1386, "PanDA queue is not online"

    @property
    def exit_code(self) -> int:
        """The exit code of a pilot process that ends with this error."""
        return _EXIT_CODES.get(self, 1)

    @property
    def recoverable(self) -> bool:
        """True if an analysis job reports the code negated, so that the server may run it again."""
        return self in _RECOVERABLE

    @classmethod
    def of_signal(cls, signum: int) -> Code:
        """The code for a pilot that was stopped by signal `signum`."""
        return _SIGNAL_CODES.get(signum, cls.KILLSIGNAL)


_EXIT_CODES = {
    Code.GENERALERROR: 65,
    Code.NOLOCALSPACE: 69,
    Code.NOSUCHFILE: 67,
    Code.QUEUEDATA: 71,
    Code.QUEUEDATANOTOK: 72,
    Code.NOPROXY: 68,
    Code.NOVOMSPROXY: 68,
    Code.NOSOFTWAREDIR: 73,
    Code.MKDIR: 66,
    Code.KILLSIGNAL: 137,
    Code.SIGTERM: 143,
    Code.SIGQUIT: 131,
    Code.SIGSEGV: 139,
    Code.SIGXCPU: 152,
    Code.SIGBUS: 135,
    Code.SIGUSR1: 138,
    Code.SIGINT: 130,
    Code.REACHEDMAXTIME: 81,
    Code.UNKNOWNEXCEPTION: 70,
    Code.COMMUNICATIONFAILURE: 79,
    Code.JSONRETRIEVALTIMEOUT: 74,
    Code.MISSINGINPUTFILE: 77,
    Code.BLACKHOLE: 75,
    Code.MIDDLEWAREIMPORTFAILURE: 76,
    Code.PANDAQUEUENOTACTIVE: 78,
    Code.CERTIFICATEHASEXPIRED: 68,
    Code.CVMFSISNOTALIVE: 64,
    Code.PROXYTOOSHORT: 80,
    Code.NOJOBSINPANDA: 82,
    Code.PANDAQUEUENOTONLINE: 83,
}

_RECOVERABLE = {
    Code.STAGEOUTFAILED,
    Code.PUTMD5MISMATCH,
    Code.STAGEOUTTIMEOUT,
    Code.PUTGLOBUSSYSERR,
}

_SIGNAL_CODES: dict[int, Code] = {
    signal.SIGTERM: Code.SIGTERM,
    signal.SIGQUIT: Code.SIGQUIT,
    signal.SIGSEGV: Code.SIGSEGV,
    signal.SIGXCPU: Code.SIGXCPU,
    signal.SIGBUS: Code.SIGBUS,
    signal.SIGUSR1: Code.SIGUSR1,
    signal.SIGINT: Code.SIGINT,
}


class Fault(Enum):
    """Whose fault an error commonly is."""

    USER = "user"  #: the job: its code, its parameters, what it asks for
    SITE = "site"  #: the node, the batch system, or how the queue is described
    STORAGE = "storage"  #: a storage or a catalogue
    SERVER = "server"  #: the PanDA server, or whoever made or ended the job
    PILOT = "pilot"  #: a bug of ours
    UNKNOWN = "unknown"


class Trait(Enum):
    """What to do after a failed transfer."""

    RETRY = "retry"  #: the same again, a little later
    NEXT = "next"  #: another replica or another tool may do; this one will not
    FATAL = "fatal"  #: nothing will help


class PilotError(Exception):
    """Something went wrong that has a code in the table.

    Args:
        code: which error.
        detail: what exactly, for a person: names, numbers, what to do next.
    """

    def __init__(self, code: Code, detail: str = "") -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail

    @property
    def diag(self) -> str:
        """The code's fixed text, then the detail, at most `DIAG_LIMIT` characters."""
        return diagnostic(self.code, self.detail)

    def __str__(self) -> str:
        return f"{int(self.code)} {self.code.name}: {self.diag}"


class TransferError(PilotError):
    """A file was not moved; `trait` says whether another try can help."""

    def __init__(self, code: Code, detail: str = "", trait: Trait = Trait.RETRY) -> None:
        super().__init__(code, detail)
        self.trait = trait


class JobDefinitionError(PilotError):
    """A job definition that cannot be used: `field` names what is wrong with it."""

    def __init__(self, field: str, problem: str, code: Code = Code.CONVERSIONFAILURE) -> None:
        super().__init__(code, f"job definition field {field!r}: {problem}")
        self.field = field


class ServerError(PilotError):
    """The PanDA server could not be reached, or refused what we asked."""

    def __init__(self, detail: str, code: Code = Code.COMMUNICATIONFAILURE) -> None:
        super().__init__(code, detail)


def diagnostic(code: Code, detail: str = "") -> str:
    """The text reported with `code`: its fixed words first, since the server's retry rules match on them."""
    detail = " ".join(detail.split())
    text = f"{code.text}: {detail}" if detail else code.text
    return text if len(text) <= DIAG_LIMIT else text[: DIAG_LIMIT - 3] + "..."
