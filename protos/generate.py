"""Generates the code beside the `.proto` files: `python -m protos.generate`, or `make protos`."""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

HERE = Path(__file__).parent
_GOOGLE = Path(protoc.__file__).parent / "_proto"
"""`google/protobuf/*.proto`."""


def generate(out: Path) -> None:
    """Write `protos/*_pb2.py` with their types, and `*_pb2_grpc.py` for those that have a service, under `out`."""
    files = sorted(HERE.glob("*.proto"))
    services = [file for file in files if "\nservice " in file.read_text("utf-8")]
    _run([f"--python_out={out}", f"--pyi_out={out}"], files)
    _run([f"--grpc_python_out={out}"], services)


def _run(outputs: list[str], files: list[Path]) -> None:
    if protoc.main(["protoc", f"--proto_path={HERE.parent}", f"--proto_path={_GOOGLE}", *outputs, *map(str, files)]):
        sys.exit("protoc failed; its message is above")


if __name__ == "__main__":
    generate(HERE.parent)
