"""The wheel that ``pip install .`` builds: name, metadata, contents."""

import csv
import io
import os
import subprocess
import sys
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    env = os.environ | {"HELIUM_TARGET_DEVICE": "cpu"}
    subprocess.run([*command, str(folder), str(REPO)], check=True, env=env)
    [path] = folder.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def member(wheel, suffix):
    [name] = [name for name in wheel.namelist() if name.endswith(suffix)]
    return wheel.read(name).decode()


def test_it_is_called_vllm_with_a_local_version_that_says_the_platform(wheel):
    metadata = HeaderParser().parsestr(member(wheel, ".dist-info/METADATA"))
    assert metadata["Name"] == "vllm"
    assert metadata["Version"] == "0.32.0+helium.1.cpu"
    assert "0.32.0+helium.1.cpu" in member(wheel, "vllm/_version.py")


def test_media_packages_are_an_extra_and_the_rest_is_upstreams(wheel):
    metadata = HeaderParser().parsestr(member(wheel, ".dist-info/METADATA"))
    required = metadata.get_all("Requires-Dist")
    media = [line for line in required if line.startswith(("torchvision", "torchaudio"))]
    assert media and all('extra == "media"' in line for line in media)
    plain = [line for line in required if "extra ==" not in line]
    assert any(line.startswith("torch==") for line in plain)
    assert any(line.startswith("transformers") for line in plain)


def test_it_holds_the_patched_engine_our_packages_and_the_extension(wheel):
    names = set(wheel.namelist())
    assert {"vllm_helium/config.py", "helium/protocol.py", "vllm/v1/engine/core.py"} <= names
    assert any(name.startswith("vllm_helium/_core.") and name.endswith(".so") for name in names)
    assert "def helium_rpc" in wheel.read("vllm/v1/engine/core.py").decode()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith((".dist-info", ".libs"))} == {
        "helium",
        "vllm",
        "vllm_helium",
    }
    assert not [name for name in names if "__pycache__" in name]


def test_the_command_and_the_record_are_there(wheel):
    scripts = member(wheel, "entry_points.txt")
    assert "vllm = vllm.entrypoints.cli.main:main" in scripts
    assert "helium = helium.cli.main:main" in scripts
    rows = csv.reader(io.StringIO(member(wheel, ".dist-info/RECORD")))
    assert {row[0] for row in rows} == set(wheel.namelist())
    assert "Apache License" in member(wheel, "vllm_helium/UPSTREAM_LICENSE")
