"""Tools that are functions: what models are told of them, and what their results are.

    pip install .
    python examples/python/tools.py
"""

import asyncio
import sys
from typing import Annotated, Dict, List

from tool_executor import Outcome, ToolContext, ToolError, ToolExecutor, tool

PRICES = {"tea": 3, "coffee": 4}


def price(item: Annotated[str, "What is bought."], number: int = 1) -> Dict[str, int]:
    """Says what something costs."""
    if item not in PRICES:
        # The model is told so, and it is its doing.
        raise ToolError(f"there is no {item!r}; there are {', '.join(PRICES)}")
    return {"price": number * PRICES[item]}


@tool(name="search", description="Finds lines that have a word.")
async def search_notes(word: str, context: ToolContext) -> List[str]:
    """Runs on an event loop, beside thousands of its kind."""
    await asyncio.sleep(0.01)
    return [f"{context.trajectory_id}: a note on {word}"]


def broken() -> str:
    """Any other exception means that the tool is broken, which is not the model's doing."""
    raise ConnectionError("no database")


def main() -> int:
    with ToolExecutor(tools=[price, search_notes, broken]) as executor:
        for described in executor.describe()["tools"][-3:]:
            print(described["function"])

        result = executor.execute("t", "price", {"item": "tea", "number": 2})
        print(result.output)
        assert result.output == '{"price": 6}'

        result = executor.execute("t", "price", {"item": "gold"})
        print(result.outcome, result.error)
        assert result.outcome is Outcome.TOOL_ERROR and result.model_attributable

        result = executor.execute("t", "price", {"number": 2})
        print(result.outcome, result.error)
        assert result.outcome is Outcome.INVALID_CALL

        result = executor.execute("t", "broken")
        print(result.outcome, result.error)
        assert result.outcome is Outcome.EXTERNAL_FAILED and not result.model_attributable

        # A call as OpenAI's API gives it, and the message that answers it.
        call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"word": "tea"}'}}
        message = executor.execute_call("t", call).message("openai")
        print(message)
        assert message["tool_call_id"] == "c1" and "tea" in message["content"]
    return 0


if __name__ == "__main__":
    sys.exit(main())
