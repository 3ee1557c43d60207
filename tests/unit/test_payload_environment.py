"""A payload gets what its node offers everybody and what it is told; nothing that is the pilot's own."""

import asyncio
import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilot.experiment import Experiment
from pilot.job import Job
from pilot.payload.environment import PASSED, PASSED_PREFIXES, parse_environ, payload_environment
from pilot.payload.process import PayloadProcess
from pilot.processes import Processes

JOB = Job(job_id=4711, task_id=12, attempt=3, cores=8)

SECRET = "hunter2-do-not-tell"


def words(text):
    return text.split()


#: What the pilot reads to prove who it is (PILOT3 1.2: server auth, S3/GS, Rucio), and what its libraries do.
CREDENTIALS = words("""
    X509_USER_PROXY X509_USER_CERT X509_USER_KEY X509_UNIFIED_DISPATCH
    PANDA_AUTH_TOKEN OIDC_AUTH_TOKEN PANDA_AUTH_ORIGIN OIDC_AUTH_ORIGIN PANDA_AUTH_DIR OIDC_AUTH_DIR
    PANDA_AUTH_TOKEN_KEY OIDC_REFRESHED_AUTH_TOKEN BEARER_TOKEN BEARER_TOKEN_FILE
    AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_SHARED_CREDENTIALS_FILE AWS_PROFILE
    PANDA_PILOT_AWS_PROFILE S3_ACCESS_KEY S3_SECRET_KEY
    GOOGLE_APPLICATION_CREDENTIALS GOOGLE_API_KEY CLOUDSDK_AUTH_ACCESS_TOKEN
    RUCIO_AUTH_TYPE RUCIO_AUTH_TOKEN RUCIO_AUTH_TOKEN_FILE_PATH RUCIO_CFG_CLIENT_PASSWORD
    RUCIO_CFG_CLIENT_CLIENT_CERT_KEY XrdSecGSIUSERPROXY XrdSecCREDS GFAL_CRED_FILE DAVIX_CRED_PATH XRD_PRIVATE_KEY
    _CONDOR_CREDS _CONDOR_SEC_TOKEN_DIRECTORY _CONDOR_SEC_PASSWORD_FILE _CONDOR_AUTH_SSL_CLIENT_KEYFILE
    _CONDOR_AUTH_SSL_CLIENT_CERTFILE GLIDEIN_CREDENTIAL OSG_TOKEN SLURM_JWT PBS_JOBCOOKIE K8S_TOKEN KUBERNETES_SECRET
    SINGULARITY_DOCKER_PASSWORD SINGULARITY_DOCKER_LOGIN APPTAINER_DOCKER_PASSWORD
    APPTAINER_ENCRYPTION_PASSPHRASE APPTAINER_ENCRYPTION_PEM_PATH APPTAINER_ENCRYPTION_PEM_DATA APPTAINERENV_TOKEN
    CONDA_TOKEN VO_PASS FRONTIER_PASSWORD ATLAS_API_KEY GITHUB_TOKEN VAULT_TOKEN SSH_AUTH_SOCK KRB5CCNAME
    LOGSTASH_PASSWORD LOKI_PASSWORD
""")

#: What concerns the pilot alone: servers, set-up, the harvester.
OWN = words("""
    PANDA_SERVER_URL HARVESTER_ID HARVESTER_WORKER_ID HARVESTER_PILOT_CONFIG HARVESTER_PYTHONPATH PANDA_JSID GTAG
    PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV LD_PRELOAD BASH_FUNC_x%% OLDPWD PILOT_HOME LOKI_URL
""")

#: What a node offers everybody.
FACTS = {
    "PATH": "/usr/bin:/bin", "HOME": "/home/pilot", "USER": "atlas", "LOGNAME": "atlas",
    "LANG": "C.UTF-8", "LC_ALL": "C",
    "TZ": "UTC", "TMPDIR": "/scratch/1", "LD_LIBRARY_PATH": "/opt/lib", "MODULEPATH": "/mods",
    "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8", "_CONDOR_SLOT": "slot1_1", "_CONDOR_JOB_AD": "/scratch/.job.ad",
    "_CONDOR_MACHINE_AD": "/scratch/.machine.ad", "PBS_JOBID": "9", "K8S_JOB_ID": "3",
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "CUDA_VISIBLE_DEVICES": "GPU-1", "NVIDIA_VISIBLE_DEVICES": "0", "ROCR_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "8",
    "http_proxy": "http://squid.site:3128", "https_proxy": "http://squid.site:3128", "all_proxy": "socks5://gate:1080",
    "no_proxy": "localhost,.site", "X509_CERT_DIR": "/cvmfs/ca", "SSL_CERT_FILE": "/etc/ca.pem",
    "ATLAS_SW_BASE": "/cvmfs", "VO_ATLAS_SW_DIR": "/cvmfs/atlas", "FRONTIER_SERVER": "(serverurl=http://f:8000/a)(proxyurl=http://s:3128)",
    "ALRB_XCACHE_PROXY": "root://localhost:1094//", "XRD_LOGLEVEL": "Warning", "RUCIO_HOME": "/opt/rucio",
    "APPTAINER_BIND": "/cvmfs", "SINGULARITY_CACHEDIR": "/scratch/cache",
}  # fmt: skip


def built(environ=None, job=JOB, **options):
    return payload_environment(environ or {}, job, **options)


# ------------------------------------------------------------------------------------------------- what does not pass


@pytest.mark.parametrize("name", [*CREDENTIALS, *OWN])
def test_what_is_the_pilots_stays_with_the_pilot(name):
    assert name not in built({name: SECRET})


@pytest.mark.parametrize("name", CREDENTIALS)
def test_no_family_that_an_experiment_asks_for_brings_a_credential_along(name):
    prefixes = ("X509_", "PANDA_", "OIDC_", "RUCIO_", "AWS_", "GOOGLE_", "S3_", "LOKI_", "LOGSTASH_", "SSH_")
    out_of_reach = {"AWS_PROFILE", "PANDA_PILOT_AWS_PROFILE"}  # names of a section in a file
    if name not in out_of_reach:
        assert SECRET not in built({name: SECRET}, prefixes=prefixes).values()


@given(
    family=st.sampled_from([*PASSED_PREFIXES, ""]),
    word=st.sampled_from(
        words("token Secret PASSWORD passwd passphrase CREDENTIALS creds api_key ApiKey ACCESSKEY cookie jwt")
    ),
    before=st.text(string.ascii_letters + "_", max_size=5),
    after=st.sampled_from(["", "_FILE", "_PATH", "_DIR", "2"]),
)
def test_a_name_that_speaks_of_a_credential_never_passes(family, word, before, after):
    name = f"{family}{before}_{word}{after}"
    assert name not in built({name: SECRET}, prefixes=("",))


@pytest.mark.parametrize("name", ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"])
@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("http://user:{}@squid.site:3128", "http://squid.site:3128"),
        ("https://user:{}@squid.site:3128/", "https://squid.site:3128/"),
        ("user:{}@squid.site:3128", "squid.site:3128"),
        ("http://user:p@{}@squid.site:3128", "http://squid.site:3128"),
        ("http://user:p/{}@squid.site:3128", "http://squid.site:3128"),
        ("http://user:{}/@squid.site:3128", "http://squid.site:3128"),
        ("socks5h://{}@[2001:db8::1]:1080", "socks5h://[2001:db8::1]:1080"),
        ("http://squid.site:3128", "http://squid.site:3128"),
        ("", ""),
    ],
)
def test_a_proxy_passes_without_its_password(name, value, left):
    assert built({name: value.format(SECRET)})[name] == left


@given(
    user=st.text(max_size=8),
    password=st.text(min_size=1, max_size=12).map(lambda text: f"<{text}>"),
    scheme=st.sampled_from(["", "http://"]),
)
def test_no_password_of_a_proxy_slips_through_whatever_it_is_made_of(user, password, scheme):
    assert built({"http_proxy": f"{scheme}{user}:{password}@squid:3128"})["http_proxy"].endswith("squid:3128")
    assert password not in built({"http_proxy": f"{scheme}{user}:{password}@squid:3128"})["http_proxy"]


def test_a_password_in_any_other_url_does_not_pass_either():
    value = f"(serverurl=http://u:{SECRET}@one:8000/a)(proxyurl=http://u:{SECRET}@two:3128)"
    assert (
        built({"FRONTIER_SERVER": value})["FRONTIER_SERVER"]
        == "(serverurl=http://one:8000/a)(proxyurl=http://two:3128)"
    )


# -------------------------------------------------------------------------------------------------------- what passes


@pytest.mark.parametrize("name", FACTS)
def test_what_a_node_offers_everybody_passes_unchanged(name):
    assert built(FACTS)[name] == FACTS[name]


def test_no_name_that_is_passed_on_is_refused():
    """A list that the pattern of credentials contradicts would be wrong in one of the two."""
    assert set(PASSED) <= set(built(dict.fromkeys(PASSED, "x")))


def test_variables_that_are_not_there_are_not_made_up():
    assert built() == {"PandaID": "4711", "PanDA_AttemptNr": "3", "PanDA_TaskID": "12", "ATHENA_PROC_NUMBER": "8"}


def test_a_job_without_a_task_has_none():
    assert "PanDA_TaskID" not in built(job=Job(job_id=1))


def test_an_experiment_names_families_and_sets_or_takes_away():
    environ = {"BELLE_DB": "x", "BELLE_TOKEN": SECRET, "OTHER": "y", "TZ": "CET"}
    found = built(environ, prefixes=("BELLE_",), experiment={"TZ": "UTC", "HOME": None, "MADE": "up"})
    assert (found["BELLE_DB"], found["TZ"], found["MADE"]) == ("x", "UTC", "up")
    assert not {"BELLE_TOKEN", "OTHER", "HOME"} & set(found)


def test_a_site_may_pass_on_a_credential_by_its_name_only():
    environ = {"X509_USER_PROXY": "/tmp/x509up", "X509_USER_KEY": SECRET}
    found = built(environ, names=["X509_USER_PROXY", "NOT_THERE"])
    assert found["X509_USER_PROXY"] == "/tmp/x509up"
    assert SECRET not in found.values() and "NOT_THERE" not in found


def test_the_more_special_wins():
    """Node < queue < who the job is < experiment < job."""
    job = Job(job_id=1, environment={"E": "job"})
    environ = dict.fromkeys(["LC_A", "LC_B", "LC_C", "LC_D"], "node")
    found = built(
        {**environ, "PandaID": "0"},
        job,
        queue_environ="LC_B=queue LC_C=queue E=queue PandaID=9",
        experiment={"LC_C": "experiment", "E": "experiment"},
    )
    assert (found["LC_A"], found["LC_B"], found["LC_C"]) == ("node", "queue", "experiment")
    assert (found["E"], found["PandaID"]) == ("job", "1")


# ----------------------------------------------------------------------------------------------------- queue's environ


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", {}),
        ("A=1 B=two", {"A": "1", "B": "two"}),
        ("A='a b' B=\"c d\"", {"A": "a b", "B": "c d"}),
        ("export A=1; export B=2;", {"A": "1", "B": "2"}),
        ("A=x=y", {"A": "x=y"}),
        ("A=", {"A": ""}),
        ("A=1\n B=2\t", {"A": "1", "B": "2"}),
        ("noise 1A=x -o=y A-B=z =v", {}),
        ("A=it's B=2", {"A": "it's", "B": "2"}),
        ("PATH=/site/bin:$PATH", {"PATH": "/site/bin:/usr/bin"}),
        ("A=/a B=${A}/b C=$NOT_KNOWN.", {"A": "/a", "B": "/a/b", "C": "."}),
        ("A=5$ B=$(id) C=`id`", {"A": "5$", "B": "$(id)", "C": "`id`"}),
    ],
)
def test_the_environ_of_a_queue_is_read_as_a_shell_would_without_one(text, pairs):
    assert parse_environ(text, {"PATH": "/usr/bin"}) == pairs


def test_the_environ_of_a_queue_reaches_no_credential():
    environ = {"X509_USER_PROXY": SECRET, "http_proxy": f"http://u:{SECRET}@squid:1"}
    found = built(environ, queue_environ="MINE=$X509_USER_PROXY P=$http_proxy")
    assert (found["MINE"], found["P"]) == ("", "http://squid:1")


@given(st.text(max_size=80))
def test_any_text_in_a_queue_is_borne(text):
    assert all(key.isidentifier() for key in parse_environ(text))


# ------------------------------------------------------------------------------------------------------ a real payload


def test_a_real_payload_of_a_pilot_with_every_credential_sees_none(tmp_path):
    environ = {name: f"{SECRET}-{name}" for name in [*CREDENTIALS, *OWN]} | FACTS
    environ |= {"http_proxy": f"http://pilot:{SECRET}@squid:3128", "HTTPS_PROXY": f"pilot:{SECRET}@squid:3128"}
    environ |= {"PATH": os.environ["PATH"]}
    environment = payload_environment(environ, JOB, prefixes=Experiment.environment_prefixes)

    async def main():
        payload = PayloadProcess.start(
            "tr '\\0' '\\n' < /proc/$$/environ; echo; tr '\\0' '\\n' < /proc/self/environ",
            workdir=tmp_path,
            environment=environment,
            processes=Processes(),
        )
        return (await payload.wait()).status

    assert asyncio.run(main()) == 0
    seen = (tmp_path / "payload.stdout").read_text()
    assert SECRET not in seen
    assert "http_proxy=http://squid:3128\n" in seen and "HTTPS_PROXY=squid:3128\n" in seen
    assert "SLURM_JOB_ID=7\n" in seen and "CUDA_VISIBLE_DEVICES=GPU-1\n" in seen and "PandaID=4711\n" in seen
