"""``python -m fastssl.train``: train one method on one data set, from flags to a scored encoder.

Only the standard library, tyro and the config dataclasses are imported until the flags are read.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fastssl import _extras
from fastssl._cli import flag_value, guarded, parse
from fastssl.recipes.run import Run, flags_of

DESCRIPTION = """\
Train an encoder without labels: embedded Spirograph images by default, or a folder of yours.

  python -m fastssl.train --method simclr --compile
  python -m fastssl.train --method simclr --compile --data photos --image-size 96
  python -m fastssl.train --data photos --augment mocov2 --preview 8
  python -m fastssl.train --method simclr --data tones
  python -m fastssl.train --resume --out runs/simclr-spirograph-1
  torchrun --nproc-per-node 2 -m fastssl.train --method simclr --sync-bn

The defaults below are those of the recipe for this --method and --data. Everything is written
into one run folder. Ctrl-C saves; --resume continues to the same bytes.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 an error of the user's, 128 + n stopped by signal n."""
    return guarded(lambda: _main(sys.argv[1:] if argv is None else list(argv)))


def _main(argv: list[str]) -> int:
    _extras.check("tyro", "rich", "yaml", "safetensors", extra="train")
    flags = flags_of(_default(argv))
    prog = "python -m fastssl.train"
    given = parse(type(flags), argv, prog=prog, text=DESCRIPTION, default=flags)
    run = Run(train=given.train, method=given.method)
    from fastssl.recipes import assemble

    if run.train.preview:
        return _preview(run)
    if run.train.dry_run:
        if os.environ.get("RANK", "0") == "0":
            print("\n".join(assemble.plan(run)))
        return 0
    return assemble.train(run)


def _preview(run: Run) -> int:
    _extras.check("PIL", extra="train")
    from fastssl.recipes.preview import write_preview

    if os.environ.get("RANK", "0") == "0":
        print(write_preview(run, Path.cwd()))
    return 0


def _default(argv: list[str]) -> Run:
    """The recipe for --method and --data; with --resume, the settings of the run in --out."""
    from fastssl.recipes.catalogue import default_run
    from fastssl.recipes.run import read_run

    out = flag_value(argv, "--out")
    if "--resume" in argv and out and (Path(out) / "config.yaml").is_file():
        run = read_run(Path(out))
        train = replace(run.train, resume=False, overwrite=False, dry_run=False, preview=0)
        return replace(run, train=train)
    method, data = flag_value(argv, "--method"), flag_value(argv, "--data")
    run = default_run(method or "simclr", data or "spirograph", flag_value(argv, "--recipe"))
    if flag_value(argv, "--epochs") and not flag_value(argv, "--max-steps"):
        run = replace(run, train=replace(run.train, max_steps=None))  # the length asked for wins
    return run


if __name__ == "__main__":
    sys.exit(main())
