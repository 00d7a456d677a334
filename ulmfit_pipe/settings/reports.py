"""Settings of making a run's page again, and of comparing runs."""

from dataclasses import dataclass

from ulmfit_pipe.settings.checks import with_home_paths


@dataclass(frozen=True)
@with_home_paths
class ReportSettings:
    """Settings of a report.

    Attributes:
        run_dir: Folder of a finished run or stage, whose report.html is made again; several are compared.
        output_file: HTML page to write; null writes one run's page into its folder, and prints a comparison only.
        explain: Colour the words of the most confident mistakes by what they add to the label given (integrated
            gradients, with the run's classifier; a second or so a text). It is kept in explanations.json.
    """

    run_dir: list[str]
    output_file: str | None = None
    explain: bool = False

    def __post_init__(self) -> None:
        """Refuse an empty list, an explained comparison, and a page that would replace another kind of file."""
        if not self.run_dir:
            raise ValueError("run_dir is empty; name the folder of at least one run")
        if self.explain and len(self.run_dir) > 1:
            raise ValueError(
                f"explain is for the page of one run, and {len(self.run_dir)} are compared; give each run_dir by itself"
            )
        if self.output_file is not None and not self.output_file.lower().endswith((".html", ".htm")):
            raise ValueError(f"output_file must end in .html, got {self.output_file!r}; the report is a web page")
