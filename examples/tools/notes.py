"""A small MCP server: notes that last as long as it runs. See docs/how-to/tools.md."""

from __future__ import annotations

from mcp.server.mcpserver import MCPServer

server = MCPServer("notes", log_level="ERROR")
notes: list[str] = []


@server.tool()
def add_note(text: str) -> str:
    """Keep a note."""
    notes.append(text)
    return f"note {len(notes)} is kept"


@server.tool()
def list_notes() -> list[str]:
    """All notes that were kept."""
    return notes


if __name__ == "__main__":
    server.run("stdio")
