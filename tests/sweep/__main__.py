"""Goes over families, prints what works, and writes it into the ledger of the support table.

python -m tests.sweep                  # all families that the ledger does not have for the Transformers installed
python -m tests.sweep --again          # all families
python -m tests.sweep llava mixtral    # some
python benchmarks/tables.py            # then writes the table into docs/guides/families.md
"""

import argparse
import sys

from tests import torchvision_on_cpu

torchvision_on_cpu.make_importable()

import transformers  # noqa: E402  (looks for torchvision once)

from tests.sweep import ledger  # noqa: E402
from tests.sweep.models import TEXT_ONLY, WITH_PICTURES  # noqa: E402
from tests.sweep.rows import row_of  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", help="as Transformers calls them; all, if none is named")
    parser.add_argument("--again", action="store_true", help="also those that the ledger has")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    done = {name for name, row in ledger.read().items() if row["transformers"] == transformers.__version__}
    skipped = set() if options.again or options.families else done
    for family in options.families or (*WITH_PICTURES, *TEXT_ONLY):
        if family in skipped:
            continue
        row = row_of(family)
        ledger.add(row)
        print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
