"""`ulmfit push`: a classifier's folder to a model hub: what loading needs, and its card.

Texts stay here: reports, predictions, logs and settings, which have texts or paths of the machine, are not uploaded.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from ulmfit_pipe.errors import UlmfitError
from ulmfit_pipe.settings.model_files import PushSettings
from ulmfit_pipe.stages.artifacts import STAGE_FILE, ArtifactError, read_stage
from ulmfit_pipe.stages.report import BACKWARD, CARD_FILE, write_card


class PushError(UlmfitError, ValueError):
    """The hub did not take the folder; the message says why."""


def push(settings: PushSettings, *, api: Any = None) -> str:
    """Upload a classifier's folder, and return the address of the repository.

    Args:
        settings: Settings.
        api: Client of the hub, as `huggingface_hub.HfApi`; by default one that HF_ENDPOINT and HF_TOKEN set up.

    Raises:
        ArtifactError: The folder is not a finished classifier.
        PushError: The hub cannot be reached, or refuses.
    """
    folder = Path(settings.model)
    below = folder / "classifier"
    stage = read_stage(folder)
    if stage is None or stage.get("stage") != "classifier":
        is_run = (below / STAGE_FILE).is_file()
        advice = f"did you mean {below}?" if is_run else "give the folder of a classifier that a run has finished"
        what = f"a {stage.get('stage')}" if stage else f"no {STAGE_FILE}"
        raise ArtifactError(f"{folder} holds {what}, so it is not a finished text classifier; {advice}")
    if not (folder / CARD_FILE).is_file():
        write_card(folder)
    files = [CARD_FILE, *stage["files"]]
    if (backward := read_stage(folder / BACKWARD)) is not None:
        files += [f"{BACKWARD}/{name}" for name in backward["files"]]
    api = api or HfApi()
    try:
        address = api.create_repo(settings.repo, private=settings.private, exist_ok=True)
        api.upload_folder(
            repo_id=settings.repo,
            folder_path=folder,
            allow_patterns=files,
            commit_message="Upload a classifier of ulmfit_pipe",
        )
    except HFValidationError as error:
        raise PushError(f"{settings.repo!r} is not the name of a repository; write NAMESPACE/NAME") from error
    except HfHubHTTPError as error:
        code = error.response.status_code
        advice = "log in with: hf auth login, or set HF_TOKEN" if code in (401, 403) else "see the hub's status page"
        raise PushError(f"the hub refused {settings.repo} (HTTP {code}); {advice}") from error
    except Exception as error:
        if not _is_of_the_network(error):
            raise
        raise PushError(
            f"the hub cannot be reached ({type(error).__name__}); nothing is lost: give the same command again when "
            "there is a network, without HF_HUB_OFFLINE"
        ) from error
    return str(address)


def _is_of_the_network(error: Exception) -> bool:
    """Whether an error says that there is no network; huggingface_hub's client is another library by its version."""
    library = type(error).__module__.partition(".")[0]
    return isinstance(error, OfflineModeIsEnabled | OSError) or library in ("httpx", "httpx2", "httpcore", "requests")
