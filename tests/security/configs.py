"""Hostile configurations: names of code, tags, references to the environment, and trees without end."""

from __future__ import annotations

import logging.config
from pathlib import Path

import yaml
from omegaconf import OmegaConf

import clipkit
from clipkit.config import ConfigError, load_config
from clipkit.evaluation.class_prompts import class_prompts
from clipkit.evaluation.suites import load_suite
from tests.security.lab import CANARY, Exploit, Lab, environment, fires, raises
from tests.security.weights import with_code

NAMES = (
    {"loss": {"kind": "evil_module.Thing"}},
    {"loss": {"class_path": "evil_module.Thing", "init_args": {}}},
    {"losses": {"x": {"_target_": "evil_module.make"}}},
    {"optim": {"kind": "evil_module.make"}},
    {"optim": {"_target_": "evil_module.make"}},
    {"plugin": "evil_module"},
    {"trainer": {"lightning": {"callbacks": [{"class_path": "evil_module.Thing"}]}}},
    {"trainer": {"lightning": {"plugins": "evil_module.make"}}},
    {"trainer": {"lightning": {"logger": "evil_module.make"}}},
    {"trainer": {"strategy": "evil_module.make"}},
    {"logging": {"()": "evil_module.make"}},
    {"model": {"name": "evil_module.make", "_target_": "evil_module.make"}},
    {"evaluate": {"tasks": {"x": {"kind": "evil_module.make"}}}},
    {"_target_": "evil_module.make"},
    {"evil_module": {"class_path": "evil_module.Thing"}},
)
TAGS = (
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/new:os.system ['touch {marker}']",
    "!!python/module:evil_module",
    "!!python/name:evil_module.make",
    "!!python/object:evil_module.Thing {{}}",
    "!include /etc/passwd",
    "!ENV ${{CANARY_TOKEN}}",
)
REFERENCES = (
    "${oc.env:CANARY_TOKEN}",
    "${oc.env:CANARY_TOKEN,x}",
    "${oc.decode:${oc.env:CANARY_TOKEN}}",
    "x${oc.env:CANARY_TOKEN}y",
    "\\${oc.env:CANARY_TOKEN}",
    "\\\\${oc.env:CANARY_TOKEN}",
    "${env:CANARY_TOKEN}",
    "${${run}.env:CANARY_TOKEN}",
    "${oc.create:{a: 1}}",
    "${oc.select:data,${oc.env:CANARY_TOKEN}}",
    "${ oc.env:CANARY_TOKEN }",
)


def named_by_a_file(lab: Lab) -> None:
    """The standard library's own reader of configurations imports what they name."""
    fires(lambda: logging.config.dictConfig({"version": 1, "handlers": {"h": {"()": "evil_module.make"}}}))


def names_here(lab: Lab) -> None:
    """No key names code, and what is no key is refused; nothing is imported on the way."""

    def work() -> None:
        for number, keys in enumerate(NAMES):
            path = lab.config(f"name{number}.yaml", **keys)
            raises(ConfigError, lambda path=path: load_config(path))
        lab.refused("fit", lab.folder / "name0.yaml")
        lab.refused("config", "validate", lab.folder / "name5.yaml")
        suite = lab.folder / "suite.yaml"
        suite.write_text("description: x\nsource: x\nsets: {a: {task: evil_module.make, metric: acc1, data: x}}\n")
        lab.refused("evaluate", lab.world.model, "--suite", suite)
        lab.refused("export", lab.world.model, "--format", "evil_module", "--out", lab.folder / "o")
        lab.refused("evaluate", lab.world.model, "--data", lab.world.shard, "--task", "evil_module.make")

    with_code(lab, work)


def tag_file(lab: Lab, tag: str) -> Path:
    """A configuration with a tag."""
    path = lab.folder / "tag.yaml"
    path.write_text(lab.world.config.read_text() + "seed: " + tag.format(marker=lab.marker) + "\n")
    return path


def tags_plainly(lab: Lab) -> None:
    """PyYAML's unsafe loader."""
    fires(lambda: yaml.unsafe_load(tag_file(lab, TAGS[0]).read_text()))


def tags_here(lab: Lab) -> None:
    """In a configuration, its base, an override, a suite, a file of prompts and the options of a task."""

    def work() -> None:
        for tag in TAGS:
            path = tag_file(lab, tag)
            assert "tag" in raises(ConfigError, lambda path=path: load_config(path))
            above = lab.folder / "above.yaml"
            above.write_text("base: tag.yaml\n")
            raises(ConfigError, lambda above=above: load_config(above))
            text = tag.format(marker=lab.marker)
            raises(ConfigError, lambda text=text: load_config(lab.world.config, [f"seed={text}"]))
            suite = lab.folder / "suite.yaml"
            suite.write_text(f"description: {text}\nsource: x\nsets: {{}}\n")
            raises(ValueError, lambda suite=suite: load_suite(str(suite)))
            prompts = lab.folder / "prompts.yaml"
            prompts.write_text(f"a: {text}\n")
            raises(ValueError, lambda prompts=prompts: class_prompts(str(prompts), ["a"]))
        template = TAGS[0].format(marker=lab.marker)
        data = ["--data", lab.shard_set(lab.world.shard), "--task", "retrieval"]
        lab.refused("evaluate", lab.world.model, *data, "--option", f"split={template}")
        lab.refused("evaluate", lab.world.model, "--suite", suite)

    with_code(lab, work)


def environment_plainly(lab: Lab) -> None:
    """OmegaConf resolves what a file asks for."""
    lab.harmed(CANARY in str(OmegaConf.to_container(OmegaConf.create({"run": REFERENCES[0]}), resolve=True)))


def environment_here(lab: Lab) -> None:
    """References to other keys alone: in every place, on the command line too, and not put together from parts."""
    for number, text in enumerate(REFERENCES):
        for key in ("run", "model", "seed"):
            path = lab.config(f"env{number}.yaml", **{key: text})
            said = raises(ConfigError, lambda path=path: load_config(path))
            lab.harmed(CANARY in said)
        raises(ConfigError, lambda text=text: load_config(lab.world.config, {"run": text}))
        lab.refused("config", "show", path)
        lab.harmed(CANARY in lab.said)
    parts = lab.config("parts.yaml", run="$${model}", model="{oc.env:CANARY_TOKEN}")
    fires(lambda: lab.harmed(CANARY in str(load_config(parts).model_dump())))
    key = lab.config("key.yaml", **{"${oc.env:CANARY_TOKEN}": 1})
    lab.harmed(CANARY in raises(ConfigError, lambda: load_config(key)))
    source = {"${oc.env:CANARY_TOKEN}": {"shards": str(lab.world.shard)}}
    named = lab.config("named.yaml", data={"train": source, "batch_size": 8, "workers": 0})
    lab.refused("fit", named, f"run={lab.folder / 'r'}")
    lab.harmed(CANARY in lab.said)


def with_canary(lab: Lab, work: object) -> None:
    """With a secret in the environment."""
    with environment(CANARY_TOKEN=CANARY):
        work(lab)


def laughs(depth: int = 12) -> str:
    """Each name stands for ten of the one before it."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    return "\n".join(lines) + "\n"


def laughs_plainly(lab: Lab) -> None:
    """What PyYAML's safe loader gives is small until it is looked at."""
    import json

    tree = yaml.safe_load(laughs(6))
    lab.harmed(len(json.dumps(tree)) > 1000 * len(laughs(6)))


def laughs_here(lab: Lab) -> None:
    """Aliases are counted as what they stand for; depth ends in words."""
    for name, text in (("laughs", laughs()), ("deep", "run: " + "[" * 9_000), ("deep2", "run: " + "{a: " * 9_000)):
        path = lab.folder / f"{name}.yaml"
        path.write_text(text)
        lab.refused("config", "validate", path)
        lab.harmed(lab.grows(50, lambda path=path: raises(ConfigError, lambda: load_config(path))))
        raises(ValueError, lambda path=path: load_suite(str(path)))
        raises(
            ValueError,
            lambda path=path: class_prompts(
                str(path), [f"a{n}" for n in range(12)] if "laughs" in path.name else ["a"]
            ),
        )
    itself = lab.folder / "itself.yaml"
    itself.write_text("run: &a [*a]\n")
    lab.refused("config", "validate", itself)
    raises(ValueError, lambda: clipkit.fit(itself))


EXPLOITS = (
    Exploit("import strings", lambda lab: with_code(lab, lambda: named_by_a_file(lab)), names_here),
    Exploit("YAML tags", tags_plainly, tags_here),
    Exploit(
        "references to the environment",
        lambda lab: with_canary(lab, environment_plainly),
        lambda lab: with_canary(lab, environment_here),
    ),
    Exploit("aliases without end", laughs_plainly, laughs_here),
)
