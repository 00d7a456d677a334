from ulmfit_pipe.reports.text_tables import Report


def test_a_report_is_text_at_a_prompt_and_a_table_in_a_notebook_with_everything_escaped():
    report = Report.of([("layer", "size"), ("  <b>", "1")], "total & rest")
    assert repr(report) == str(report) == "layer  size\n-----  ----\n  <b>  1\ntotal & rest"
    style = 'style="text-align: left; white-space: pre"'
    assert report._repr_html_() == (
        f"<table><thead><tr><th {style}>layer</th><th {style}>size</th></tr></thead>"
        f"<tbody><tr><td {style}>  &lt;b&gt;</td><td {style}>1</td></tr></tbody></table><p>total &amp; rest</p>"
    )


def test_a_report_of_a_text_alone_is_that_text_in_a_notebook():
    assert Report("a < b")._repr_html_() == '<pre style="white-space: pre; overflow-x: auto">a &lt; b</pre>'
