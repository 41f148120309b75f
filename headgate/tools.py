"""Functions that models may call. See docs/how-to/tools.md."""

from orchestrator.tools.function import tool as tool
from orchestrator.tools.tool import ToolError as ToolError
