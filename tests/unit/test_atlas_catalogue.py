"""PoolFileCatalog.xml, TURLs in the command and lists of a payload of ATLAS, GUIDs of its outputs (PILOT3 4.7, 5.1)."""

from __future__ import annotations

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from pilot.errors import Code, PilotError
from pilot.job import File, Job, Kind
from plugins.experiments._atlas_catalogue import pool_catalogue, read_metadata
from plugins.experiments.atlas import Atlas

G1, G2 = "4ACC5018-2EA3-B441-BC11-0C0992847FD1", "D2A6D6F4-ADB2-B140-9C2E-D2D5C099B342"
TURL = "root://dcgftp.usatlas.bnl.gov:1096//a/AOD.1.root"


def made(lfn: str, guid: str = G1, turl: str = "", kind: Kind = Kind.INPUT) -> File:
    return File(lfn=lfn, kind=kind, guid=guid, turl=turl)


def ready(tmp_path, job: Job, variables=None) -> Job:
    return Atlas().inputs_ready(job, tmp_path, variables or {})


# ----------------------------------------------------------------------------------------------------------- catalogue


def test_the_catalogue_has_pilot_3s_form(tmp_path):
    ready(tmp_path, Job(job_id=1, inputs=(made("AOD.1.root", turl=TURL), made("EVNT.2.root", G2))))
    assert (tmp_path / "PoolFileCatalog.xml").read_text() == (
        '<?xml version="1.0" ?>\n<!DOCTYPE POOLFILECATALOG SYSTEM "InMemory">\n<POOLFILECATALOG>\n'
        f'  <File ID="{G1}">\n    <physical>\n      <pfn filetype="ROOT_All" name="{TURL}"/>\n    </physical>\n'
        "    <logical/>\n  </File>\n"
        f'  <File ID="{G2}">\n    <physical>\n      <pfn filetype="ROOT_All" name="EVNT.2.root"/>\n    </physical>\n'
        "    <logical/>\n  </File>\n</POOLFILECATALOG>\n"
    )


def test_near_inputs_are_read_by_the_cache_if_there_is_one(tmp_path):
    proxy = {"ALRB_XCACHE_PROXY": "root://localhost:1094//"}
    far = replace(made("far", G2, "root://far//far"), near=False)
    job = Job(job_id=1, parameters="AOD.1.root far", inputs=(made("AOD.1.root", turl=TURL), far, made("copied")))
    job = ready(tmp_path, job, proxy)
    assert job.parameters == f"root://localhost:1094//{TURL} root://far//far"
    assert f'name="root://localhost:1094//{TURL}"' in (tmp_path / "PoolFileCatalog.xml").read_text()


def test_no_name_breaks_the_catalogue():
    name = "root://h//f?a=1&b=\"<'>"
    found = ElementTree.fromstring(pool_catalogue([made("f", turl=name)]).encode())
    assert found.find("File/physical/pfn").get("name") == name


def test_a_job_without_inputs_has_no_catalogue(tmp_path):
    ready(tmp_path, Job(job_id=1))
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------------- payload


def test_a_job_of_production_reads_turls_where_its_command_and_lists_name_files(tmp_path):
    job = Job(
        job_id=1,
        transformation="Reco_tf.py",
        parameters="--inputAODFile=AOD.1.root,EVNT.2.root --out=new.AOD.1.root --x AOD.1.root.1 'AOD.1.root'",
        inputs=(made("AOD.1.root", turl=TURL), made("EVNT.2.root", G2)),
        write_to_file={"list.txt": ("--inputAODFile", "AOD.1.root", "EVNT.2.root")},
    )
    job = ready(tmp_path, job)
    assert job.parameters == (f"--inputAODFile={TURL},EVNT.2.root --out=new.AOD.1.root --x AOD.1.root.1 '{TURL}'")
    assert job.write_to_file == {"list.txt": ("--inputAODFile", TURL, "EVNT.2.root")}


@pytest.mark.parametrize("turl", ["root://h//f;rm", "root://h//$(id)", "root://h//a b", "root://h//f&g", "root://h//'"])
def test_a_turl_that_means_something_to_a_shell_never_gets_into_a_command(tmp_path, turl):
    with pytest.raises(PilotError) as caught:
        ready(tmp_path, Job(job_id=1, parameters="f", inputs=(made("f", turl=turl),)))
    assert caught.value.code is Code.SETUPFAILURE


@pytest.mark.parametrize(
    ("turl", "parameters", "expected"),
    [
        (TURL, "-i x", "./trf -i x --usePFCTurl --directIn"),
        (TURL, "-i x --directIn", "./trf -i x --directIn --usePFCTurl"),
        ("", "-i x", "./trf -i x"),
    ],
)
def test_a_user_job_is_told_to_read_from_the_catalogue(tmp_path, turl, parameters, expected):
    job = Job(job_id=1, is_analysis=True, parameters=parameters, inputs=(made("f", turl=turl),))
    assert Atlas().command(ready(tmp_path, job), "./trf") == expected


# -------------------------------------------------------------------------------------------------------------- outputs


METADATA = f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE POOLFILECATALOG SYSTEM 'InMemory'>
<POOLFILECATALOG>
  <File ID="{G2}">
    <logical>
      <lfn name="RDO.root"/>
    </logical>
    <metadata att_name="events" att_value="3"/>
    <metadata att_name="fileType" att_value="RDO"/>
  </File>
</POOLFILECATALOG>
"""


def outputs(tmp_path, **job) -> tuple[File, ...]:
    wanted = (made("RDO.root", G1, kind=Kind.OUTPUT), made("HIST.root", G1, kind=Kind.OUTPUT))
    return Atlas().outputs(Job(job_id=1, outputs=wanted, **job), tmp_path)


def guids(tmp_path, **job) -> list[str]:
    return [file.guid for file in outputs(tmp_path, **job)]


def test_outputs_have_the_events_that_the_payload_counted(tmp_path):
    assert [file.events for file in outputs(tmp_path)] == [None, None]
    (tmp_path / "metadata.xml").write_text(METADATA)
    assert [file.events for file in outputs(tmp_path)] == [3, None]
    files = [{"name": "HIST.root", "file_guid": G2, "nentries": 7}, {"name": "RDO.root", "file_guid": G2}]
    (tmp_path / "jobReport.json").write_text(json.dumps({"files": {"output": [{"subFiles": files}]}}))
    assert [file.events for file in outputs(tmp_path)] == [None, 7]
    files[1]["nentries"] = "UNDEFINED"  # as ATLAS' transformations write what they could not count
    (tmp_path / "jobReport.json").write_text(json.dumps({"files": {"output": [{"subFiles": files}]}}))
    assert [file.events for file in outputs(tmp_path)] == [None, 7]


def test_outputs_have_the_guids_that_the_payload_gave_them(tmp_path):
    assert guids(tmp_path) == [G1, G1]
    (tmp_path / "metadata.xml").write_text(METADATA)
    assert guids(tmp_path) == [G2, G1]
    assert read_metadata(tmp_path) == {"RDO.root": {"guid": G2, "events": "3", "fileType": "RDO"}}
    files = [{"subFiles": [{"name": "HIST.root", "file_guid": G2}, {"name": "RDO.root", "file_guid": "no guid"}]}]
    (tmp_path / "jobReport.json").write_text(json.dumps({"files": {"output": files}}))
    assert guids(tmp_path) == [G1, G2]
    assert guids(tmp_path, is_analysis=True) == [G1, G1]


BOMB = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><POOLFILECATALOG>&b;</POOLFILECATALOG>'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<POOL",
        BOMB.encode(),
        BOMB.encode("utf-16"),
        b'<?xml version="1.0" encoding="nonsense"?><a/>',
        b"x" * (5 << 20),
    ],
    ids=["empty", "cut", "entities", "utf-16", "encoding", "large"],
)
def test_metadata_that_is_none_is_passed_over(tmp_path, content):
    (tmp_path / "metadata.xml").write_bytes(content)
    assert guids(tmp_path) == [G1, G1]
