"""The DeepSeek-R1 recipe on PyTorch Lightning: prompt -> rollout -> reward -> advantage -> loss -> update."""

from pathlib import Path

# A wheel holds configs/ and callbacks/ inside r1/. In a clone they sit beside it: look there too.
_clone = Path(__file__).parents[1]
if (_clone / "pyproject.toml").is_file():
    __path__.append(str(_clone))
