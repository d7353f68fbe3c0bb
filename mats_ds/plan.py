"""Will it fit? Memory, FLOPs and hours of a run before it is started, on a machine without a GPU.

    python profiling/plan.py [--recipe R] --ds_config C [--gpus N] [--gpu GPU]
        [section.key=value ...]
    python profiling/plan.py --sweep [--ds_config C]

Exit status: 0 it fits; 1 it does not, and the plan names the largest micro-batch that does; 2 wrong
arguments, recipe or JSON. What is in the plan and how each part was checked: the page on memory of
`mats docs`.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file, Python would look for modules in mats_ds/ itself
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from mats_ds.core.interrupts import begin_script

    begin_script()

import argparse
import contextlib
import json
import logging
from dataclasses import fields

from mats_ds.config.ds_config import list_json_names
from mats_ds.config.finetune_recipe import FinetuneRecipe
from mats_ds.config.load import list_keys, list_recipes
from mats_ds.core.cli import ArgumentParser, leave, run_script
from mats_ds.core.gpus import GPUS
from mats_ds.core.storage.package_files import find_folder, own_command
from mats_ds.core.text import log_to_stderr
from mats_ds.planning.forecast import ASSUMED_MFU, forecast, largest_micro_batch
from mats_ds.planning.plan_text import format_plan, plan_to_json
from mats_ds.planning.question import PlanOptions, Question, resolve_question
from mats_ds.planning.sweep import compare_published, format_sweep, sweep, sweep_to_json
from mats_ds.training.dry_run_sweep import format_judged, judge_sweep, measure_sweep, write_exact_sweep

FITS, TOO_LARGE = 0, 1
logger = logging.getLogger("mats_ds")
DEFAULT_JSON = find_folder("ds_configs") / "zero2.json"


def main(arguments: list[str] | None = None) -> int:
    """Print the plan or the sweep, return the exit status."""
    return run_script(lambda: _run(parse_arguments(arguments)))


def _run(options: argparse.Namespace) -> int:
    log_to_stderr(logging.INFO)
    # DeepSpeed prints on stdout, before the answer, that there is no GPU
    with contextlib.redirect_stdout(sys.stderr):
        question = resolve_question(PlanOptions(**{field.name: getattr(options, field.name) for field in fields(PlanOptions)}))
    return (_sweep if options.sweep else _plan)(question, exact=options.exact, as_json=options.json)


def _plan(question: Question, *, exact: bool, as_json: bool) -> int:
    how = dict(gpu=question.gpu, world_size=question.world_size, accumulation=question.batch.accumulation, loader=question.loader)
    planned = forecast(question.workload, question.ds_config, micro_batch=question.batch.micro_batch, **how)
    largest = largest_micro_batch(question.workload, question.ds_config, **how)
    measured = None
    if exact:
        from mats_ds.training.dry_run import measure_cached

        logger.info("--exact: running the real engine on fake tensors, up to a minute; the answer is kept for the next time")
        measured = measure_cached(
            question.workload,
            question.ds_config,
            world_size=question.world_size,
            micro_batch=question.batch.micro_batch,
            # a third micro-batch needs what the second does
            accumulation=min(2, question.batch.accumulation),
        )
    if as_json:
        print(json.dumps(plan_to_json(question, planned, largest=largest, exact=measured), indent=1))
    else:
        print(format_plan(question, planned, largest=largest, exact=measured))
    return FITS if planned.fits else TOO_LARGE


def _sweep(question: Question, *, exact: bool, as_json: bool) -> int:
    how = dict(world_size=question.world_size, micro_batch=question.batch.micro_batch)
    cells = sweep(question.workload, question.ds_config, loader=question.loader, mfu=question.time.mfu, **how)
    tree = measure_sweep(cells, question.workload, question.ds_config, world_size=question.world_size) if exact else None
    if tree is not None:
        logger.info("wrote %s", write_exact_sweep(tree))
    if as_json:
        print(json.dumps(sweep_to_json(cells), indent=1))
        return FITS
    print(format_sweep(cells, mfu=question.time.mfu, **how))
    print()
    print("\n".join(compare_published(question.workload, question.ds_config, world_size=question.world_size)))
    if tree is not None:
        print()
        print(format_judged(judge_sweep(tree, question.workload)))
    return FITS


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(
        recipe_keys=list_keys(FinetuneRecipe),
        description=(__doc__ or "").replace("python profiling/plan.py", own_command("plan")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", default="default", help=f"YAML file, or one of {', '.join(list_recipes())} (%(default)s)")
    parser.add_argument(
        "--ds_config", default=str(DEFAULT_JSON), help=f"DeepSpeed JSON, or one of {', '.join(list_json_names())} (zero2)"
    )
    parser.add_argument("--gpus", type=int, default=8, metavar="N", help="GPUs of the run (default: %(default)s)")
    parser.add_argument("--gpu", default="a100-80g", metavar="GPU", help=f"one of {', '.join(GPUS)} (default: %(default)s)")
    parser.add_argument("--finetune", action="store_true", help="plan fine-tuning on a pre-training recipe's model and clips")
    parser.add_argument("--keep_ratio", type=float, default=None, help="fraction of the tokens with --finetune (default: 0.6)")
    parser.add_argument("--micro_batch", type=int, metavar="N", help="clips a GPU takes at once (default: the JSON's)")
    parser.add_argument("--clips", type=int, metavar="N", help="clips of an epoch (default: the manifest's, or the data set's)")
    parser.add_argument(
        "--mfu", type=float, help=f"fraction of the GPUs' peak arithmetic that is used (default: {ASSUMED_MFU}, assumed)"
    )
    parser.add_argument("--measured", type=Path, metavar="RUN_DIR", help="take the MFU that a run has recorded")
    parser.add_argument("--video", default=PlanOptions.video, metavar="WxH", help="size of the files (default: %(default)s)")
    parser.add_argument("--exact", action="store_true", help="run the real engine on fake tensors too: up to a minute, cached")
    parser.add_argument("--sweep", action="store_true", help="all sizes on five nodes, MATS beside VideoMAE")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the text")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    return parser.parse_intermixed_args(arguments)


if __name__ == "__main__":
    leave(main())
