"""Files of ATLAS jobs that nobody wants in a log (PILOT3 5.7): patterns, see `pilot.logarchive`."""

from __future__ import annotations

#: A path with one of these texts in it is kept, whatever the patterns say: what explains how the payload was called.
KEPT = ("runargs", "runwrapper", "jobReport", "log.", "xrdlog")

#: Where a user's transformation works.
WORKDIR = "workDir"

#: Software and databases that were set up or unpacked.
_SOFTWARE = (
    *(".asetup.save", "AtlasProduction*", "AtlasPoint1", "AtlasTier0", "CDRelease*", "DBRelease*", "EvgenJobOptions"),
    *("external", "geant4", "geomDB", "geomDB_sqlite", "triggerDB", "sqlite*", "trusted.caches", "o..pacman..o"),
    *("pacman-*", "python*", "share", "sw", "home", "scratch", "src", "docs", "venv", "usr", "pandawnutil"),
    *("LICENSE", "README*", "MANIFEST*", "requirements.txt", "setup.cfg", "sources.*"),
)

#: The job's own scripts, which the server has, and the pilot's.
_SCRIPTS = (
    *("buildJob*", "runAthena*", "runGen-*", "*runcontainer*", "stage*.sh", "*.py", "open_remote_file_cmd.sh"),
    *("pilot", "pilot3"),
)

#: Of generators, reconstruction and analysis.
_DATA = (
    *("*.root*", "**/*pool.root*", "*.data*", "*.events", "merged_lhef._0.events-new", "fort.*", "csc*.log"),
    *("madevent", "Process", "HAHM_*", "pwg*", "pwhg*", "*PROC*", "tcf_*", "**/EventService_premerge_*.tar"),
    *("athenaMP-workers-*/*/tmp.*",),
)

#: Left behind.
_REMAINS = (
    *("tmp*", "*.tmp", "*.TMP", "*.writing", "*.part*", "ckpt*", "cores", "work", "workdir", "*job.log.tgz", "%1"),
    *("singularity", "apptainer", "singularity_cachedir", "apptainer_cachedir", "**/*.a"),
)

#: Never for others to see.
_CREDENTIALS = ("*proxy", "_joproxy15", "x509*")

REDUNDANT = (*_SOFTWARE, *_SCRIPTS, *_DATA, *_REMAINS, *_CREDENTIALS)
