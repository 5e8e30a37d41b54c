"""Makes the index's torchvision importable beside a torch for the CPU.

Its compiled operators want CUDA's libraries, and without them it fails at import, where it
registers fake kernels for two of them: ``nms`` and ``qnms``. vLLM asks for neither, so their
schemas are enough. Run once by the Python whose torchvision it is::

    python tests/vllm/torchvision_without_cuda.py
"""

import sysconfig
from pathlib import Path

_HEAD = "\n\n# Schemas without kernels, for a torch without CUDA.\n"
_SCHEMAS = """if not _has_ops():
    _schemas = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _schemas.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def main() -> None:
    """Adds the schemas to ``torchvision/extension.py``, once."""
    path = Path(sysconfig.get_paths()["purelib"]) / "torchvision/extension.py"
    text = path.read_text()
    if _HEAD not in text:
        path.write_text(text + _HEAD + _SCHEMAS)


if __name__ == "__main__":
    main()
