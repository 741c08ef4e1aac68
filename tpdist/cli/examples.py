"""Examples at the end of every `--help`. The tests hold that each of them parses, and that no command lacks one."""

EXAMPLES = {
    "tpdist": ["tpdist train configs/quickstart.yaml", "tpdist evaluate runs/quickstart --split test"],
    "tpdist train": [
        "tpdist train configs/quickstart.yaml --run-dir runs/first --set method.name=costate run.epochs=3",
        "tpdist train --resume runs/first --set run.epochs=8",
    ],
    "tpdist evaluate": [
        "tpdist evaluate runs/first --split test --by-position",
        "tpdist evaluate runs/first --h-steps 2 --h-lr 0.1",
    ],
    "tpdist sample": ['tpdist sample runs/first --prompt "the value of" --tokens 40 --temperature 0.8'],
    "tpdist export": [
        "tpdist export runs/first --out exports/first",
        "tpdist export runs/first --out last --model last",
    ],
    "tpdist checkpoint": ["tpdist checkpoint list runs/first"],
    "tpdist checkpoint list": ["tpdist checkpoint list runs/first"],
    "tpdist checkpoint verify": ["tpdist checkpoint verify runs/first"],
    "tpdist sweep": ["tpdist sweep sweep.yaml --dir runs/sweep", "tpdist sweep sweep.yaml --dir runs/sweep --retry"],
    "tpdist reproduce": ["tpdist reproduce table1 --cells 'ptb-*-block20' --budget 8h"],
    "tpdist report": ["tpdist report runs/first runs/second --out report.html"],
    "tpdist plot": ["tpdist plot runs/first --out figures", "tpdist plot runs/first runs/second --out figures"],
    "tpdist plan": ["tpdist plan configs/ptb_batch.yaml --workers 1024 --gpu h100 --link 400Gb"],
    "tpdist submit": [
        "tpdist submit configs/quickstart.yaml --address http://127.0.0.1:8265 --set cluster.workers=2",
    ],
    "tpdist jobs": ["tpdist jobs --address http://127.0.0.1:8265"],
    "tpdist stop": ["tpdist stop JOB --address http://127.0.0.1:8265"],
    "tpdist bench": ["tpdist bench scaling --workers 1,2"],
    "tpdist bench step": ["tpdist bench step --json step.json"],
    "tpdist bench arms": ["tpdist bench arms", "tpdist bench arms --device cuda"],
    "tpdist bench head": ["tpdist bench head", "tpdist bench head --device cuda"],
    "tpdist bench batch": ["tpdist bench batch --json batch.json"],
    "tpdist bench overlap": ["tpdist bench overlap"],
    "tpdist bench checkpoint": ["tpdist bench checkpoint --json checkpoint.json"],
    "tpdist bench evaluation": ["tpdist bench evaluation"],
    "tpdist bench timeparallel": ["tpdist bench timeparallel"],
    "tpdist bench scaling": ["tpdist bench scaling --workers 1,2,4 --json scaling.json"],
    "tpdist doctor": ["tpdist doctor", "tpdist doctor --json"],
    "tpdist data": ["tpdist data prepare ptb --source DIR --out stores/ptb-word"],
    "tpdist data prepare": [
        "tpdist data prepare ptb --source DIR --out stores/ptb-word",
        "tpdist data prepare text --train a.txt --valid b.txt --test c.txt --out stores/mine --max-types 10000",
    ],
    "tpdist data verify": ["tpdist data verify stores/ptb-word"],
    "tpdist config": ["tpdist config show configs/quickstart.yaml"],
    "tpdist config show": ["tpdist config show configs/quickstart.yaml --set preset=paper"],
    "tpdist config schema": ["tpdist config schema > schema.json"],
}


def examples_of(command: str) -> str:
    """The end of the help of `command`, such as `tpdist data verify`; nothing where there is no example."""
    lines = EXAMPLES.get(command, [])
    title = "example" if len(lines) == 1 else "examples"
    return "".join(["\n", title, ":\n", *(f"  {line}\n" for line in lines)]) if lines else ""
