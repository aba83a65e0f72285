"""Markdown tables, as every benchmark prints them."""


def markdown(columns: list[str], rows: dict[str, list[str]]) -> str:
    """Return a table: titles of the columns, and cells by the name of their row."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]
    return "\n".join(lines) + "\n"
