"""What each verb takes on the command line, and what is said of it."""

from __future__ import annotations

from typing import Any

Argument = tuple[tuple[str, ...], dict[str, Any]]  # its names, and the rest of what argparse is told

_CONFIG: list[Argument] = [
    (
        ("overrides",),
        {"nargs": "*", "metavar": "KEY=VALUE", "help": "overrides, as in Hydra: model=resnet model.depth=50 head.dropout=0.2"},
    ),
    (("-m", "--multirun"), {"action": "store_true", "help": "a sweep: several values of a key are several runs (head.dropout=0,0.5)"}),
    (("-cd", "--config-dir"), {"metavar": "DIR", "help": "a folder with config groups of your own"}),
    (("-cn", "--config-name"), {"metavar": "NAME", "default": "config", "help": "the config to start from (config)"}),
]
_TOLERANCE: Argument = (
    ("--tolerance",),
    {
        "type": float,
        "default": 0.005,
        "metavar": "X",
        "help": "difference from the recorded metrics that passes; a part of those above 1 (0.005)",
    },
)
VERBS: dict[str, tuple[list[Argument], str]] = {
    "train": (
        [*_CONFIG, (("-c", "--cfg"), {"choices": ["job", "hydra", "all"], "help": "print the composed config and stop"})],
        "adapt a network: a run, or a sweep with -m",
    ),
    "check": (_CONFIG, "compose and check what train would run, and run nothing"),
    "preview": (
        [
            *(each for each in _CONFIG if "--multirun" not in each[0]),
            (("--output",), {"metavar": "FILE", "default": "preview.png", "help": "where the sheet is written (preview.png)"}),
            (("--pictures",), {"type": int, "metavar": "N", "default": 6, "help": "rows: how many train pictures (6)"}),
            (("--draws",), {"type": int, "metavar": "N", "default": 7, "help": "columns: how many epochs' draws of what is random (7)"}),
        ],
        "draw a sheet of train pictures and of what train would see of them",
    ),
    "find-lr": (
        [
            *(each for each in _CONFIG if "--multirun" not in each[0]),
            (("--output",), {"metavar": "FILE", "default": "lr.png", "help": "where the plot is written (lr.png)"}),
            (("--steps",), {"type": int, "metavar": "N", "default": 100, "help": "optimizer steps, each with a larger rate (100)"}),
        ],
        "the learning-rate range test: train some steps with a growing rate, and keep nothing",
    ),
    "list": (
        [
            (("group",), {"nargs": "?", "help": "a config group: model, dataset, freeze, ..."}),
            (
                ("-cd", "--config-dir"),
                {"metavar": "DIR", "help": "a folder with config groups of your own: its experiments are listed too"},
            ),
            (("--cost",), {"action": "store_true", "help": "with model: parameters, multiply-adds, memory and speed here of every net"}),
            (("--size",), {"type": int, "default": 224, "metavar": "PX", "help": "side of the pictures that --cost measures with (224)"}),
        ],
        "the config groups, or one group's entries and their keys",
    ),
    "cache": (
        [
            (
                ("action",),
                {"choices": ["list", "prune", "verify"], "help": "show what is stored, remove activations, or compare checksums"},
            ),
            (("--dir",), {"metavar": "DIR", "help": "the cache folder: the cache.dir of your runs (regraft in the user's cache folder)"}),
            (("--json",), {"action": "store_true", "help": "list: JSON instead of a table, sizes in bytes"}),
            (("--max-gb",), {"type": float, "metavar": "N", "help": "prune: remove the longest unused until N GB of activations are left"}),
            (("--unused-days",), {"type": float, "metavar": "N", "help": "prune: remove what no run has used for N days"}),
            (("--all",), {"action": "store_true", "help": "prune: remove all activations that no process uses"}),
            (("--dry-run",), {"action": "store_true", "help": "prune: only show what would be removed"}),
        ],
        "what the cache folder holds; prune removes activations alone: weights/ is what run folders need to be opened",
    ),
    "status": (
        [
            (
                ("dir",),
                {"metavar": "DIR", "nargs": "?", "default": "multirun", "help": "a folder with runs in it, or one run's (multirun)"},
            ),
            (("--watch",), {"action": "store_true", "help": "look again and again, until nothing runs any more"}),
            (("--json",), {"action": "store_true", "help": "JSON instead of words; times in seconds"}),
        ],
        "how far a sweep has come: done, running, failed and why, the time left, the best so far on val",
    ),
    "evaluate": (
        [
            (("run",), {"metavar": "RUN", "help": "a run folder"}),
            (("--json",), {"action": "store_true", "help": "JSON instead of a table"}),
            _TOLERANCE,
        ],
        "measure a finished run again, from its weights and its data",
    ),
    "predict": (
        [
            (("run",), {"metavar": "RUN", "help": "a run folder"}),
            (
                ("files",),
                {"nargs": "+", "metavar": "FILE", "help": "pictures, or what else it has learnt on: .ts, .txt, .csv; or folders of these"},
            ),
            (("--json",), {"action": "store_true", "help": "a line of JSON for each picture, series or text"}),
            (("--top",), {"type": int, "default": 3, "help": "how many classes to show (3)"}),
            (("--draw",), {"metavar": "DIR", "help": "folder for each picture with what is said of it drawn in it: NAME.predicted.png"}),
        ],
        "what a finished run says of pictures, series or texts",
    ),
    "generate": (
        [
            (("run",), {"metavar": "RUN", "help": "the folder of a run of task=frames"}),
            (("--prime",), {"metavar": "FILE|NOTES", "default": "C4", "help": "played before: a MIDI file, or notes: 'C4+E4:2 G4' (C4)"}),
            (("--seconds",), {"type": float, "metavar": "N", "default": 20.0, "help": "seconds that are played on (20)"}),
            (("--seed",), {"type": int, "metavar": "S", "default": 0, "help": "the same seed plays the same (0)"}),
            (("--tempo",), {"type": float, "metavar": "BPM", "default": 80.0, "help": "quarters a minute (80)"}),
            (("--temperature",), {"type": float, "metavar": "T", "default": 1.0, "help": "below 1: the likelier is played more often (1)"}),
            (("--gibbs",), {"type": int, "metavar": "N", "default": 0, "help": "dbn: N steps of sampling tell each frame (0: none)"}),
            (("--output",), {"metavar": "DIR", "default": ".", "help": "folder of the MIDI file and its picture (.)"}),
        ],
        "play on from a few notes: a MIDI file and a piano roll",
    ),
    "diff": (
        [
            (("first",), {"metavar": "RUN", "help": "a run folder"}),
            (("second",), {"metavar": "RUN", "help": "another one"}),
            (("--json",), {"action": "store_true", "help": "JSON instead of tables, with every picture that is answered differently"}),
        ],
        "what differs between two runs: config, code, packages, data, and the test pictures on which they disagree",
    ),
    "report": (
        [
            (("dirs",), {"nargs": "+", "metavar": "DIR", "help": "folders with runs in them, at any depth"}),
            (("--output",), {"metavar": "DIR", "help": "where the report is written (report/ in the first DIR)"}),
            (
                ("--axes",),
                {
                    "metavar": "KEYS",
                    "default": "",
                    "help": "keys that make columns and figures: model,optimizer.lr (those that were swept)",
                },
            ),
            (("--title",), {"metavar": "TEXT", "help": "of the page"}),
        ],
        "one page with tables, tests and figures of many runs, and the same as csv, Markdown, LaTeX, PNG and PDF",
    ),
    "reproduce": (
        [
            (("run",), {"metavar": "RUN|DIR", "help": "a run folder, or a folder of run folders: config.yaml and record.json are enough"}),
            (
                ("changes",),
                {"nargs": "*", "metavar": "KEY=VALUE", "help": "where files lie on this machine: dataset.path=DIR, cache.dir=DIR"},
            ),
            (("--output",), {"metavar": "DIR", "help": "where the new run folders go (multirun/reproduced)"}),
            _TOLERANCE,
            (("--json",), {"action": "store_true", "help": "JSON instead of words"}),
        ],
        "run a finished run again from its record, and say: identical, within tolerance, or different and since where",
    ),
    "paper": (
        [
            (("paper",), {"nargs": "?", "metavar": "NAME", "help": "a paper that comes with regraft, or a file of yours (NAME.yaml)"}),
            (
                ("changes",),
                {"nargs": "*", "metavar": "KEY=VALUE", "help": "overrides for all its runs: where data lies, a launcher, hardware"},
            ),
            (("--full",), {"action": "store_true", "help": "the full size, for which data is needed that does not come along"}),
            (("--show",), {"action": "store_true", "help": "tell what would be run and judged, and stop"}),
            (("--output",), {"metavar": "DIR", "help": "where runs and report go (multirun/papers/NAME)"}),
        ],
        "run a paper's experiment, and judge its claims by the figures: supported, not supported, not enough evidence",
    ),
    "completion": (
        [
            (
                ("shell",),
                {"choices": ["bash", "zsh", "fish"], "help": 'in its start file: eval "$(regraft completion bash)"; fish: ... | source'},
            )
        ],
        "the script by which a shell completes verbs, options, groups and their keys, run folders",
    ),
}
