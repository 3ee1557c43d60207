"""Job specs as `job/submit` takes them: values by position. They become definitions as the dispatcher makes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from pilot.devserver.jobs import Definition, DefinitionError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# The attributes in the order in which their values come (panda-server 1.0.4, taskbuffer/JobSpec.py and FileSpec.py).
_JOB_ATTRIBUTES = _words("""
    PandaID jobDefinitionID schedulerID pilotID creationTime creationHost modificationTime modificationHost
    AtlasRelease transformation homepackage prodSeriesLabel prodSourceLabel prodUserID assignedPriority
    currentPriority attemptNr maxAttempt jobStatus jobName maxCpuCount maxCpuUnit maxDiskCount maxDiskUnit
    ipConnectivity minRamCount minRamUnit startTime endTime cpuConsumptionTime cpuConsumptionUnit commandToPilot
    transExitCode pilotErrorCode pilotErrorDiag exeErrorCode exeErrorDiag supErrorCode supErrorDiag ddmErrorCode
    ddmErrorDiag brokerageErrorCode brokerageErrorDiag jobDispatcherErrorCode jobDispatcherErrorDiag
    taskBufferErrorCode taskBufferErrorDiag computingSite computingElement jobParameters metadata prodDBlock
    dispatchDBlock destinationDBlock destinationSE nEvents grid cloud cpuConversion sourceSite destinationSite
    transferType taskID cmtConfig stateChangeTime prodDBUpdateTime lockedby relocationFlag jobExecutionID VO
    pilotTiming workingGroup processingType prodUserName nInputFiles countryGroup batchID parentID specialHandling
    jobsetID coreCount nInputDataFiles inputFileType inputFileProject inputFileBytes nOutputDataFiles
    outputFileBytes jobMetrics workQueue_ID jediTaskID jobSubStatus actualCoreCount reqID maxRSS maxVMEM maxSWAP
    maxPSS avgRSS avgVMEM avgSWAP avgPSS maxWalltime nucleus eventService failedAttempt hs06sec gshare hs06 totRCHAR
    totWCHAR totRBYTES totWBYTES rateRCHAR rateWCHAR rateRBYTES rateWBYTES resource_type diskIO memory_leak
    memory_leak_x2 container_name job_label gco2_regional gco2_global cpu_architecture_level outputFileType
""")
_FILE_ATTRIBUTES = _words("""
    row_ID PandaID GUID lfn type dataset status prodDBlock prodDBlockToken dispatchDBlock dispatchDBlockToken
    destinationDBlock destinationDBlockToken destinationSE fsize md5sum checksum scope jediTaskID datasetID fileID
    attemptNr
""")
_SAME_NAME = _words("""
    homepackage transformation jobName jobDefinitionID cloud attemptNr destinationSE prodUserID maxCpuCount
    minRamCount maxDiskCount cmtConfig processingType transferType sourceSite currentPriority taskID coreCount
    jobsetID reqID nucleus maxWalltime resource_type prodSourceLabel computingSite
""")


def from_specs(text: str) -> list[dict[str, Any]]:
    """Definitions of the job specs that `job/submit` takes: lists of values by position, the last one the files.

    Raises:
        DefinitionError: the text is not such a list.
    """
    try:
        return [_from_spec(values) for values in json.loads(text)]
    except (ValueError, TypeError, IndexError, KeyError) as error:
        raise DefinitionError(f"{type(error).__name__}: {error}") from error


def _from_spec(values: Sequence[Any]) -> dict[str, Any]:
    job = dict(zip(_JOB_ATTRIBUTES, values[:-1], strict=True))
    files = [dict(zip(_FILE_ATTRIBUTES, file, strict=False)) for file in values[-1]]
    inputs = [file for file in files if file["type"] == "input"]
    outputs = [file for file in files if file["type"] in ("output", "log")]
    log = next((file for file in outputs if file["type"] == "log"), {})
    definition = {key: job[key] for key in _SAME_NAME if job[key] is not None}
    definition |= {"swRelease": job["AtlasRelease"], "jobPars": job["jobParameters"]}
    definition |= {"logFile": log.get("lfn", ""), "scopeLog": log.get("scope", "")}
    return definition | _of_inputs(inputs, job) | _of_outputs(outputs)


def _of_inputs(inputs: Sequence[Definition], job: Definition) -> dict[str, str]:
    """Lists over the inputs. The real server knows the queue's read endpoint; here the job's own stands for it."""
    joined = {
        "inFiles": "lfn",
        "dispatchDblock": "dispatchDBlock",
        "dispatchDBlockToken": "dispatchDBlockToken",
        "prodDBlocks": "prodDBlock",
        "prodDBlockToken": "prodDBlockToken",
        "realDatasetsIn": "dataset",
        "GUID": "GUID",
        "fsize": "fsize",
        "scopeIn": "scope",
    }
    lists = {key: _join(inputs, attribute) for key, attribute in joined.items()}
    sums = [file["checksum"] if file["checksum"] not in ("", "NULL", None) else file["md5sum"] for file in inputs]
    return {
        **lists,
        "checksum": ",".join(map(str, sums)),
        "ddmEndPointIn": ",".join([job["destinationSE"]] * len(inputs)),
    }


def _of_outputs(outputs: Sequence[Definition]) -> dict[str, str]:
    joined = {
        "outFiles": "lfn",
        "dispatchDBlockTokenForOut": "dispatchDBlockToken",
        "destinationDblock": "destinationDBlock",
        "destinationDBlockToken": "destinationDBlockToken",
        "realDatasets": "dataset",
        "fileDestinationSE": "destinationSE",
        "ddmEndPointOut": "destinationSE",
    }
    lists = {key: _join(outputs, attribute) for key, attribute in joined.items()}
    return {**lists, "scopeOut": _join([file for file in outputs if file["type"] == "output"], "scope")}


def _join(files: Iterable[Definition], attribute: str) -> str:
    return ",".join(str(file[attribute]) for file in files)
