"""One schema: the generated code is up to date, and flatc's independent reader agrees with ours."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mnnq import _native
from tests.format.samples import ROOT, differences, file_of, fixtures
from tests.schema_reader import mnn_generated as reader
from tools import generate_schema

SCHEMA = _native.schema()
ENTRIES = fixtures()


def test_the_generated_code_is_up_to_date() -> None:
    tool = ROOT / "tools" / "generate_schema.py"
    subprocess.run([sys.executable, str(tool), "--check"], check=True)


def test_the_generated_reader_is_up_to_date(tmp_path: Path) -> None:
    flatc = generate_schema.find_flatc()
    if flatc is None:
        pytest.skip("flatc is not installed")
    generate_schema.generate_reader(flatc, tmp_path)
    checked_in = ROOT / "tests" / "schema_reader" / "mnn_generated.py"
    assert (tmp_path / "mnn_generated.py").read_text() == checked_in.read_text()


def test_slots_agree_with_flatc() -> None:
    source = (ROOT / "tests" / "schema_reader" / "mnn_generated.py").read_text()
    ours = {
        (table, camel(name)): field["slot"]
        for table, fields in SCHEMA["tables"].items()
        for name, field in fields.items()
    }
    ours[("Op", "MainType")] = SCHEMA["tables"]["Op"]["main"]["slot"] - 1
    found = re.findall(r"^def (\w+)\(builder.*\n.*Slot\((\d+),", source, re.M)
    assert dict(found) == {f"{table}Add{method}": str(slot) for (table, method), slot in ours.items()}


def test_enums_agree_with_flatc() -> None:
    for name, values in SCHEMA["enums"].items():
        found = {key: value for key, value in vars(getattr(reader, name)).items() if isinstance(value, int)}
        assert found == values, name
    union = {key: value for key, value in vars(reader.OpParameter).items() if isinstance(value, int)}
    assert union == {"NONE": 0, **{key: tag for tag, key in enumerate(SCHEMA["union"], 1)}}


def camel(name: str) -> str:
    """`has_scaleInt` -> `HasScaleInt`, `useRMSNorm` -> `UseRmsnorm`, as flatc spells methods."""
    name = re.sub(r"(?<=[A-Z])[A-Z]", lambda match: match[0].lower(), name)
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def read_table(name: str, table: Any) -> dict[str, Any]:
    """A table read through flatc's code, in the form of `read_model`."""
    out: dict[str, Any] = {}
    for field, desc in SCHEMA["tables"][name].items():
        method, kind = camel(field), desc["type"]
        if kind == "union":
            tag = getattr(table, f"{method}Type")()
            if tag:
                member = SCHEMA["union"][tag - 1]
                generic, specific = getattr(table, method)(), getattr(reader, member)()
                specific.Init(generic.Bytes, generic.Pos)
                out[f"{field}_type"] = member
                out[field] = read_table(member, specific)
        elif kind.startswith("["):
            if not getattr(table, f"{method}IsNone")():
                out[field] = read_vector(table, method, kind[1:-1])
        else:
            value = getattr(table, method)()
            if kind in SCHEMA["enums"]:
                keys = {number: key for key, number in SCHEMA["enums"][kind].items()}
                out[field] = keys.get(value, value)
            elif kind in SCHEMA["tables"]:
                if value is not None:
                    out[field] = read_table(kind, value)
            elif kind == "string":
                if value is not None:
                    out[field] = value.decode()
            else:
                out[field] = value
    return out


def read_vector(table: Any, method: str, element: str) -> Any:
    length = getattr(table, f"{method}Length")()
    if element in SCHEMA["tables"]:
        return [read_table(element, getattr(table, method)(i)) for i in range(length)]
    if element == "string":
        return [getattr(table, method)(i).decode() for i in range(length)]
    dtype = "int32" if element in SCHEMA["enums"] else element
    return np.asarray(getattr(table, f"{method}AsNumpy")(), dtype) if length else np.empty(0, dtype)


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["name"])
def test_both_readers_agree(entry: dict[str, Any]) -> None:
    content = file_of(entry).read_bytes()
    # As bytes: without its side file.
    ours = _native.read_model(content)
    assert differences(read_table("Net", reader.Net.GetRootAs(content)), ours) == []
    written = _native.model_to_bytes(ours)
    assert differences(read_table("Net", reader.Net.GetRootAs(written)), ours) == []
