from pathlib import Path

import pytest
import yaml

import raypipe
from raypipe.errors import ConfigError
from raypipe.submit import packed

EMBED = {"input": "s3://videos/", "output": "s3://embeddings/v1/"}


def write(folder: Path, name: str, **keys: object) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(keys))
    return path


@pytest.mark.parametrize("name", ["embed.yaml", "embed-2026.yml", "embed_night.yaml"])
def test_the_name_of_the_file_selects_the_job(tmp_path: Path, name: str) -> None:
    with packed(write(tmp_path, name, **EMBED)) as job:
        assert job.entrypoint == "python -m raypipe embed job.yaml"
        assert job.submission_id.startswith("raypipe-embed-")


def test_a_file_with_another_name_needs_the_job_option(tmp_path: Path) -> None:
    path = write(tmp_path, "mine.yaml", **EMBED)
    with pytest.raises(ConfigError) as caught, packed(path):
        pass
    assert (caught.value.key, caught.value.value) == ("--job", "mine")
    assert repr(str(path)) in str(caught.value)
    assert {"embed", "train"} <= set(caught.value.choices)
    with packed(path, command="embed") as job:
        assert job.entrypoint == "python -m raypipe embed job.yaml"


def test_the_checked_configuration_and_this_code_are_sent(tmp_path: Path) -> None:
    path = write(tmp_path, "embed.yaml", **EMBED, sampling={"num_frames": 4})
    with packed(path, overrides=["backbone.name=resnet18", "output=s3://embeddings/v2/"]) as job:
        sent = Path(job.runtime_env["working_dir"])
        assert [file.name for file in sent.iterdir()] == ["job.yaml"]
        assert yaml.safe_load((sent / "job.yaml").read_text()) == {
            "input": "s3://videos/",
            "output": "s3://embeddings/v2/",
            "sampling": {"num_frames": 4},
            "backbone": {"name": "resnet18"},
        }
        assert job.runtime_env["py_modules"] == [str(Path(raypipe.__file__).parent)]
        assert set(job.runtime_env) == {"working_dir", "py_modules"}  # nothing from this machine's environment
    assert not sent.exists()


def test_only_how_to_reach_public_buckets_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAYPIPE_S3_ANONYMOUS", "videos")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with packed(write(tmp_path, "embed.yaml", **EMBED)) as job:
        assert job.runtime_env["env_vars"] == {"RAYPIPE_S3_ANONYMOUS": "videos"}


def test_errors_are_reported_before_anything_is_sent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught, packed(write(tmp_path, "embed.yaml", **EMBED, inputt="a")):
        pass
    assert caught.value.key == "inputt"


def test_a_file_of_this_machine_is_refused_unless_its_folder_is_sent(tmp_path: Path) -> None:
    keys = {"embeddings": "s3://embeddings/v1/", "output": "s3://models/v1/", "labels": "labels.csv"}
    path = write(tmp_path, "train.yaml", **keys)
    with pytest.raises(ConfigError) as caught, packed(path):
        pass
    assert (caught.value.key, caught.value.value) == ("labels", "labels.csv")
    assert "--working-dir" in caught.value.remedy
    with packed(path, working_dir=tmp_path) as job:
        assert job.entrypoint == "python -m raypipe train train.yaml"
        assert job.runtime_env["working_dir"] == str(tmp_path.resolve())


def test_an_absolute_path_is_sent_with_a_note(tmp_path: Path) -> None:
    with packed(write(tmp_path, "embed.yaml", input="/mnt/videos", output="s3://embeddings/v1/")) as job:
        [note] = job.notes
        assert note.startswith("input: /mnt/videos ")


def test_a_checkout_is_sent_as_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "jobs/embed.yaml", **EMBED)
    (tmp_path / "raypipe").mkdir()
    (tmp_path / "raypipe" / "__init__.py").touch()
    with packed(path, working_dir=tmp_path, overrides=["input=s3://a b/"]) as job:
        assert job.entrypoint == "python -m raypipe embed jobs/embed.yaml --set 'input=s3://a b/'"
        assert "py_modules" not in job.runtime_env


def test_the_file_is_in_the_folder_that_is_sent(tmp_path: Path) -> None:
    path = write(tmp_path, "embed.yaml", **EMBED)
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError) as caught, packed(path, working_dir=tmp_path / "other"):
        pass
    assert (caught.value.key, caught.value.expected) == (str(path), str(tmp_path / "other"))
    nowhere = tmp_path / ".." / "nowhere"
    with pytest.raises(ConfigError) as caught, packed(path, working_dir=nowhere):
        pass
    assert (caught.value.key, caught.value.value) == ("--working-dir", str(nowhere))
