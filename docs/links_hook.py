"""A hook of mkdocs: links that leave docs/ become the file's path in the repository, which the site does not hold."""

import re
from typing import Any


def on_page_markdown(markdown: str, **_page: Any) -> str:
    """Replace ``[words](../path)`` by the words and the path."""
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2` in the repository)", markdown)
