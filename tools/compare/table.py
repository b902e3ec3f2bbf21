"""Results as Markdown, and what machine they are of."""

import datetime
import statistics
from pathlib import Path

ISA = ["avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"]


def machine(threads: int) -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", "unknown"),
        "cores": sum(line.startswith("processor") for line in lines),
        "threads": threads,
        "isa": [name for name in ISA if name in flags],
        "date": datetime.date.today().isoformat(),
    }


def summary(samples: list[float]) -> dict:
    return {
        "median": statistics.median(samples),
        "min": min(samples),
        "max": max(samples),
        "rounds": len(samples),
    }


def markdown(machine: dict, rows: list[dict]) -> str:
    """`rows` have measure, unit, name, precision, and a summary or an error."""
    isa = ", ".join(machine["isa"]) or "no AVX2"
    text = f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads ({isa}), {machine['date']}.\n"
    for measure in dict.fromkeys(row["measure"] for row in rows):
        group = [row for row in rows if row["measure"] == measure]
        own = next((row for row in group if row["name"] == "trimtab"), None)
        text += f"\n**{measure}**, {group[0]['unit']}\n\n"
        text += "| | precision | median | least | most | rounds | trimtab is |\n|---|---|---|---|---|---|---|\n"
        text += "".join(line(row, own) for row in group)
    settings = {(row["name"], row["precision"]): row["settings"] for row in rows if row.get("settings")}
    text += "\n" + "".join(f"- {name}, {kind}: {what}\n" for (name, kind), what in settings.items())
    return text


def line(row: dict, own: dict | None) -> str:
    head = f"| {row['name']} | {row['precision']} "
    if "error" in row:
        return f"{head}| {row['error'].replace('|', '/')} | | | | |\n"
    values = " | ".join(shown(row[key]) for key in ("median", "min", "max"))
    return f"{head}| {values} | {row['rounds']} | {ratio(row, own)} |\n"


def ratio(row: dict, own: dict | None) -> str:
    """How many times as fast trimtab is."""
    if own is None or own is row or "error" in own:
        return ""
    faster = own["median"] / row["median"]
    if row["unit"] == "s":
        faster = 1 / faster
    return f"{faster:.2f} ×"


def shown(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
