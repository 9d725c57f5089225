"""Imports point down only, each dangerous or heavy import has one place, and files stay small: read from the source itself."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "clipkit"

# From the ground up. A part may import the parts of lower floors; parts that share a floor know nothing of one another, but for LEANS_ON.
FLOORS = (
    ("1", {"config", "distributed", "metrics", "processes", "waits"}),
    ("2a", {"towers", "losses", "data", "checkpoint", "in_training"}),
    ("2b", {"batch_statistics", "checkpoint_copies", "encoder", "guard", "loading", "optim", "replicas", "spikes"}),
    ("3a", {"evaluation", "exporters", "embedding", "explanation"}),
    (
        "3b",
        {
            "allowed",
            "hardware",
            "micro_batch",
            "quiet",
            "module",
            "callbacks",
            "training",
            "running",
            "building",
            "staging",
            "launch",
            "stopping",
            "packing",
            "plugins",
            "run_folder",
            "rollback",
            "mismatch",
            "loggers",
            "teachers",
            "strategy",
            "watching",
        },
    ),
    ("4", {"api", "demo", "report"}),
    ("5", {"cli", "__init__", "__main__"}),
)
LEANS_ON = {  # within a floor: who may import whom
    "distributed": {"waits"},
    "embedding": {"evaluation"},
    "exporters": {"evaluation"},
    "guard": {"spikes"},
    "loading": {"encoder"},
    "demo": {"api"},
    "__main__": {"cli"},
    "callbacks": {"loggers", "module"},
    "building": {"micro_batch", "module", "callbacks", "staging", "teachers"},
    "teachers": {"callbacks"},
    "packing": {"building", "callbacks"},
    "plugins": {"building"},
    "launch": {"allowed", "run_folder"},
    "stopping": {"callbacks", "run_folder"},
    "mismatch": {"callbacks", "run_folder"},
    "rollback": {"callbacks"},
    "running": {"callbacks", "building", "loggers", "plugins"},
    "watching": {"callbacks", "launch", "running"},
    "training": {
        "watching",
        "module",
        "callbacks",
        "building",
        "running",
        "allowed",
        "hardware",
        "launch",
        "stopping",
        "plugins",
        "quiet",
        "run_folder",
        "rollback",
        "mismatch",
        "strategy",
    },
}
NO_TORCH = {"config"}  # parts that never import these, however late
HEAVY = {"torch", "lightning", "open_clip", "torchvision", "timm", "transformers"}

# Who may import open_clip, and why it is not enough to go through towers/open_clip.py.
OPEN_CLIP = {
    "clipkit.towers.open_clip": "builds every model",
    "clipkit.exporters.open_clip": "the proof of an export loads it the way its receiver will, past our own code",
    "clipkit.evaluation.preprocessing": "what published weights want is written in open_clip's registry",
    "clipkit.exporters.beside": "the receiver of a graph prepares raw inputs with open_clip, from the configuration beside the files",
}

Import = tuple[int, str]  # line, dotted name


def modules() -> dict[str, Path]:
    """Dotted name to file, of every module of clipkit."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = ("clipkit", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts)] = path
    return found


MODULES = modules()


def imports(source: str, module: str) -> list[Import]:
    """Every import of a module, at its top or inside a function; ``from a import b`` is ``a.b`` where that is a module."""
    found: list[Import] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # relative: from the module's own package
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    return found


def part_of(dotted: str) -> str | None:
    """The part of clipkit that a dotted name belongs to; None outside clipkit."""
    package, _, rest = dotted.partition(".")
    if package != "clipkit":
        return None
    part = rest.split(".")[0]
    return part if any(part in parts for _, parts in FLOORS) or f"clipkit.{part}" in MODULES else "__init__"


def floor_of(part: str) -> int:
    for number, (_, parts) in enumerate(FLOORS):
        if part in parts:
            return number
    raise AssertionError(f"clipkit.{part} stands on no floor; give it one in FLOORS")


def wrong_imports(source: str, module: str) -> list[str]:
    """Imports that point up or sideways."""
    mine = part_of(module)
    assert mine is not None
    found = []
    for line, name in imports(source, module):
        other = part_of(name)
        if other is None:
            if mine in NO_TORCH and name.split(".")[0] in HEAVY:
                found.append(f"{module}:{line} imports {name}; {mine} must not")
            continue
        up = floor_of(other) > floor_of(mine)
        sideways = floor_of(other) == floor_of(mine) and other != mine and other not in LEANS_ON.get(mine, ())
        if up or sideways:
            found.append(f"{module}:{line} imports {name}, which is {'above' if up else 'beside'} it")
    return found


def misplaced_imports(source: str, module: str) -> list[str]:
    """Imports of packages that only one place may import."""
    found = []
    for line, name in imports(source, module):
        collective = name == "torch.distributed" or name.startswith("torch.distributed.")
        if collective and module != "clipkit.distributed":
            found.append(f"{module}:{line} imports {name}; go through clipkit.distributed")
        if name.split(".")[0] == "open_clip" and module not in OPEN_CLIP:
            found.append(f"{module}:{line} imports {name}; go through clipkit.towers.open_clip")
        if name.split(".")[0] in ("open_clip_train", "pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal"):
            found.append(f"{module}:{line} imports {name}; nothing here does")
    return found


def _constant(call: ast.Call, keyword: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == keyword and _literal(k.value)), None)


def _literal(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant)


IMPORTS_BY_NAME = {
    "clipkit.plugins": "what the user named with --plugin",
    "clipkit.exporters.formats": "a module of clipkit, by a table of its own",
}


def _imports_as_allowed(call: ast.Call, module: str) -> bool:
    """A name that is written out is as good as an import statement; others have their places."""
    return module in IMPORTS_BY_NAME or (bool(call.args) and _literal(call.args[0]))


def dangerous_calls(source: str, module: str) -> list[str]:
    """Calls that run code out of data: unpickling, evaluating, shells."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rsplit(".", 1)[-1]
        why = None
        if name in ("pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec"):
            why = "runs code out of data"
        elif name == "torch.load" and _constant(node, "weights_only") is not True:
            why = "needs weights_only=True, spelled out"
        elif last == "load" and _constant(node, "allow_pickle") is True:
            why = "needs allow_pickle=False"
        elif _constant(node, "shell") or name in ("os.system", "os.popen", "subprocess.getoutput"):
            why = "hands a text to a shell"
        elif last == "decode" and any(_literal(arg) and arg.value in ("pil", "torch", "rgb") for arg in node.args):
            why = "is webdataset's decode, which unpickles .pyd and .pth members"
        elif last.endswith(("_object_list", "_object")) and last.startswith(
            ("send", "recv", "broadcast", "all_gather", "gather", "scatter")
        ):
            why = "pickles between ranks; use clipkit.distributed.gather_json"
        elif name in ("importlib.import_module", "__import__") and not _imports_as_allowed(node, module):
            why = "imports by a name that may come from a file; one module does, for --plugin"
        elif last in ("WebDataset", "WebLoader", "gopen", "tarfile_to_samples", "url_opener"):
            why = "opens names by webdataset, whose pipe: runs them"
        elif last in ("load_from_checkpoint", "extractall", "unpack_archive"):
            why = "makes what a stranger's file names"
        elif _constant(node, "trust_remote_code") or _constant(node, "weights_only") is False:
            why = "runs code that came with a model"
        if why:
            found.append(f"{module}:{node.lineno} {name}(...) {why}")
    return found


def too_long(source: str, module: str) -> list[str]:
    """Files above 400 lines and functions above 60."""
    found = [f"{module} has {n} lines"] if (n := len(source.splitlines())) > 400 else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            found += [f"{module}:{node.lineno} {node.name} has {lines} lines"] if lines > 60 else []
    return found


CHECKS = (wrong_imports, misplaced_imports, dangerous_calls, too_long)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_file_keeps_the_rule(check):
    assert len(MODULES) > 80, "the files were not found"
    found = [line for module, path in MODULES.items() for line in check(path.read_text(), module)]
    assert not found, "\n".join(found)


PLANTED = [
    (wrong_imports, "clipkit.data.plan", "from clipkit.module import CLIPModule"),
    (wrong_imports, "clipkit.data.plan", "from clipkit.towers.base import Tower"),
    (wrong_imports, "clipkit.data.plan", "def late():\n    from clipkit import api"),
    (wrong_imports, "clipkit.data.plan", "import clipkit"),
    (wrong_imports, "clipkit.data.plan", "from clipkit import __version__"),
    (wrong_imports, "clipkit.data.plan", "from .. import api"),
    (wrong_imports, "clipkit.encoder", "from clipkit.loading import load_encoder"),
    (wrong_imports, "clipkit.api", "from clipkit.demo.story import tell"),
    (wrong_imports, "clipkit.evaluation.zero_shot", "from clipkit.module import CLIPModule"),
    (wrong_imports, "clipkit.evaluation.zero_shot", "from clipkit.exporters.parity import ParityReport"),
    (wrong_imports, "clipkit.config.run", "def late():\n    import torch.nn as nn"),
    (misplaced_imports, "clipkit.losses.tiled", "import torch.distributed as dist"),
    (misplaced_imports, "clipkit.losses.tiled", "from torch import distributed"),
    (misplaced_imports, "clipkit.losses.tiled", "from torch.distributed.fsdp import fully_shard"),
    (misplaced_imports, "clipkit.loading", "from open_clip.factory import load_checkpoint"),
    (misplaced_imports, "clipkit.towers.open_clip", "from open_clip_train.main import main"),
    (misplaced_imports, "clipkit.checkpoint", "import pickle"),
    (dangerous_calls, "clipkit.checkpoint", "pickle.loads(data)"),
    (dangerous_calls, "clipkit.checkpoint", "torch.load(path)"),
    (dangerous_calls, "clipkit.checkpoint", "torch.load(path, weights_only=False)"),
    (dangerous_calls, "clipkit.checkpoint", "torch.load(path, weights_only=flag)"),
    (dangerous_calls, "clipkit.data.index", "np.load(path, allow_pickle=True)"),
    (dangerous_calls, "clipkit.config.loader", "yaml.load(text, Loader=yaml.SafeLoader)"),
    (dangerous_calls, "clipkit.config.units", "eval(text)"),
    (dangerous_calls, "clipkit.config.units", "exec(text)"),
    (dangerous_calls, "clipkit.launch", "subprocess.run(command, shell=True)"),
    (dangerous_calls, "clipkit.launch", "os.system(command)"),
    (dangerous_calls, "clipkit.data.dataset", "webdataset.WebDataset(urls).decode('pil')"),
    (dangerous_calls, "clipkit.distributed", "dist.all_gather_object(out, value)"),
    (dangerous_calls, "clipkit.distributed", "dist.scatter_object_list(out, value)"),
    (dangerous_calls, "clipkit.distributed", "dist.recv_object_list(out)"),
    (dangerous_calls, "clipkit.config.loader", "importlib.import_module(name)"),
    (dangerous_calls, "clipkit.config.loader", "__import__(name)"),
    (dangerous_calls, "clipkit.data.stream", "webdataset.WebDataset(path)"),
    (dangerous_calls, "clipkit.data.stream", "wds.gopen(path)"),
    (dangerous_calls, "clipkit.data.stream", "tar.extractall(folder)"),
    (dangerous_calls, "clipkit.loading", "CLIPModule.load_from_checkpoint(path)"),
    (dangerous_calls, "clipkit.towers.open_clip", "AutoModel.from_pretrained(name, trust_remote_code=True)"),
    (dangerous_calls, "clipkit.towers.open_clip", "open_clip.create_model(name, weights_only=False)"),
    (too_long, "clipkit.metrics", "x = 1\n" * 401),
    (too_long, "clipkit.metrics", "def f():\n" + "    x = 1\n" * 60),
]


@pytest.mark.parametrize(("check", "module", "source"), PLANTED)
def test_a_planted_violation_is_seen(check, module, source):
    assert check(source, module)


ALLOWED = [
    (wrong_imports, "clipkit.module", "from clipkit.losses.base import Loss"),
    (wrong_imports, "clipkit.demo.story", "from clipkit import api, distributed"),
    (wrong_imports, "clipkit.data.plan", "from clipkit.data.draws import uniform"),
    (misplaced_imports, "clipkit.demo.ranks", "from torch.nn.parallel import DistributedDataParallel"),
    (misplaced_imports, "clipkit.launch", 'command = ["-m", "torch.distributed.run"]'),
    (dangerous_calls, "clipkit.distributed", "bytes(payload).decode()"),
    (dangerous_calls, "clipkit.checkpoint", "torch.load(path, weights_only=True)"),
]


@pytest.mark.parametrize(("check", "module", "source"), ALLOWED)
def test_what_is_right_is_left_alone(check, module, source):
    assert not check(source, module)


def test_every_part_stands_on_one_floor():
    parts = {name.split(".")[1] for name in MODULES}
    for part in parts:
        assert sum(part in names for _, names in FLOORS) == 1, f"clipkit.{part} must stand on exactly one floor"


def run_python(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_names_of_modules_and_functions_do_not_collide():
    everything = "; ".join(f"import {name.removesuffix('.__init__')}" for name in MODULES if name != "clipkit.__main__")
    run_python(
        "-c", f"{everything}\nassert all(callable(getattr(clipkit, name)) for name in clipkit.__all__), clipkit.__all__"
    )


LIGHT = {
    "import clipkit": "import clipkit",
    "--help": "run(['--help'])",
    "fit --help": "run(['fit', '--help'])",
    "config list": "run(['config', 'list'])",
    "a mistyped verb": "run(['ift'])",
}


@pytest.mark.parametrize("name", LIGHT)
def test_imports_no_torch(name):
    code = f"import sys\nfrom clipkit.cli.main import run\n{LIGHT[name]}\n" if "run(" in LIGHT[name] else LIGHT[name]
    heavy = f"{{name for name in sys.modules if name.split('.')[0] in {HEAVY!r}}}"
    run_python("-c", f"import sys\n{code}\nfound = {heavy}\nassert not found, sorted(found)[:5]")
