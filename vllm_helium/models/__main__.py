"""``python -m vllm_helium.models``: makes the model that comes along and prints its folder."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from helium.errors import HeliumError
from vllm_helium.models.smollm2 import ensure_smollm2


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vllm_helium.models",
        description="Makes SmolLM2-135M-Instruct in the user's cache and prints its folder.",
    )
    parser.add_argument("--cache-dir", help="instead of $XDG_CACHE_HOME/vllm-helium")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare with transformers' GGUF loader (needs accelerate); report on stderr",
    )
    options = parser.parse_args(arguments)
    try:
        folder = ensure_smollm2(options.cache_dir)
        if options.verify:
            from vllm_helium.models.verification import verify_smollm2

            print(json.dumps(verify_smollm2(options.cache_dir), indent=2), file=sys.stderr)
    except HeliumError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
