"""Generated sections of a page, between the comments `<!-- NAME: COMMAND -->` and `<!-- /NAME -->`."""


def with_section(text: str, name: str, content: str, *, command: str) -> str:
    """Returns the page with a new section `name`, which `command` generates.

    Raises:
        SystemExit: the page lacks the two marks.
    """
    begin, end = f"<!-- {name}: {command} -->", f"<!-- /{name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise SystemExit(f"error: the page lacks {begin} and {end}, so its table has no place; restore both lines")
    return f"{before}{begin}\n{content}\n{end}{after}"
