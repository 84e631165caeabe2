"""Shows the examples of docstrings as code: a paragraph that begins with ``>>>``."""

import re

import griffe


class Doctests(griffe.Extension):
    """Puts fences around the examples."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Change the docstring of one object."""
        if obj.docstring:
            text = obj.docstring.value
            text = re.sub(r"^>>> .*?(?=\n\n|\Z)", r"```pycon\n\g<0>\n```", text, flags=re.M | re.S)
            obj.docstring.value = text
