from pathlib import Path

import pytest

SMALL = """\
model: ViT-B-32
data:
  train: {cc: {shards: "/data/{00000..00009}.tar"}}
  batch_size: 32
loss: infonce
trainer: {length: 100 steps}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory with one right configuration, `small.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


@pytest.fixture
def report(folder):
    """The lines of the report that `small.yaml` with other text and overrides earns."""
    from clipkit.config import ConfigError, load_config

    def of(text: str, overrides=(), name: str = "exp.yaml") -> list[str]:
        (folder / name).write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config(name, overrides)
        return [line[2:] for line in str(caught.value).splitlines()[1:]]

    return of


@pytest.fixture
def load(folder):
    from clipkit.config import load_config

    def of(text: str, overrides=(), name: str = "exp.yaml"):
        (folder / name).write_text(text)
        return load_config(name, overrides)

    return of
