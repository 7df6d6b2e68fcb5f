import re

from distributed.drawing.tables import ABSENT, Cell, Group, Table, texts, to_latex, to_markdown, to_page

TABLE = Table(
    "Scores & more",
    texts("encoder", "R²"),
    (
        Group("of one kind_", ((Cell("a_b|c<i>"), Cell("60.0", "[1, 2]", strong=True, mark="†")),)),
        Group("", ((Cell("50 %"), ABSENT),)),
    ),
    ("† 100 % other $ data.",),
)


def test_markdown_keeps_the_columns_whatever_a_name_holds():
    """Bars and tags are escaped, a heading is a row, the mark is inside the emphasis and the note below."""
    lines = to_markdown([TABLE]).splitlines()
    assert "| *of one kind_* |  |" in lines
    assert r"| a_b\|c&lt;i> | **60.0†** [1, 2] |" in lines
    assert "- † 100 % other $ data." in lines
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")]
    assert set(bars) == {3}


def test_latex_has_no_character_that_latex_would_take_for_a_command():
    """Every special character is escaped, numbers are flush right, and the text is plain ASCII."""
    text = to_latex([TABLE])
    assert r"a\_b$|$c$<$i$>$ & \textbf{60.0$^\dagger$} {\scriptsize [1, 2]} \\" in text
    assert r"\begin{tabular}{lr}" in text
    assert r"\multicolumn{2}{l}{\emph{of one kind\_}}" in text
    assert r"100 \% other \$ data." in text
    assert text.isascii()
    body = text.partition("\n")[2]
    for environment in ("table*", "tabular", "flushleft"):
        assert body.count(rf"\begin{{{environment}}}") == body.count(rf"\end{{{environment}}}") == 1


def test_the_page_escapes_names_and_loads_nothing():
    """Markup in a name stays text, and a policy forbids whatever the page does not hold."""
    page = to_page([TABLE], title="T", lead=["<script>"])
    assert "a_b|c&lt;i&gt;" in page
    assert "<script>" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_a_page_alone_has_details_exact_values_and_drawings():
    """A paper and a terminal get the number and its interval; a name in a detail cannot become markup on the page."""
    cell = Cell("0.123", "[0.1, 0.2]", value=0.12345, detail="layer <2>", look="gain")
    row = (Cell("key"), cell, Cell("drawn", drawing="<svg></svg>"))
    table = Table("T", texts("task", "score", "picture"), (Group("", (row,)),), zero="40.00%")
    page = to_page([table], title="T")
    assert 'class="number gain" data-label="score" data-value="0.12345"' in page
    assert '<small class="choice">layer &lt;2&gt;</small>' in page
    assert '<span class="hidden">drawn</span><svg></svg>' in page
    assert 'style="--zero: 40.00%"' in page
    for text in (to_markdown([table]), to_latex([table])):
        assert "0.123 " in text and "0.12345" not in text
        assert "layer" not in text and "svg" not in text
