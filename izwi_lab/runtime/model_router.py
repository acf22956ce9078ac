"""ModelRouter: from what a user calls a model to a variant, its files, and the plan for where it runs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from izwi_lab import artifacts, catalog, settings
from izwi_lab.artifacts import LocalModel
from izwi_lab.backends.base import BackendPlan
from izwi_lab.backends.router import BackendRouter
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import ModelVariant, Task
from izwi_lab.errors import InvalidInputError, NotDownloadedError, UnknownModelError, WrongTaskError
from izwi_lab.runtime import load, recognise
from izwi_lab.runtime.entry import ModelKey
from izwi_lab.settings import Settings

_REPO = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


@dataclass(frozen=True, slots=True)
class Route:
    """Which model answers, where it runs, and the key it is loaded under. folder: of a model the user brought."""

    variant: ModelVariant
    plan: BackendPlan
    key: ModelKey
    folder: Path | None = None


class ModelRouter:
    """Resolves names; holds no models.

    models_dir: where fetched weights are kept, None takes the default. config: of the BackendRouter. in_memory: tells
    which models are; while one is, what led to it leads to it again under the same settings, without a look at the
    machine (3 ms).
    """

    def __init__(
        self,
        config: Settings | None = None,
        *,
        models_dir: Path | None = None,
        in_memory: Callable[[ModelKey], bool] = lambda key: False,
    ) -> None:
        self._backends, self._config = BackendRouter(config), config
        self._models_dir, self._in_memory = models_dir, in_memory
        self._routes: dict[tuple[str | None, ...], Route] = {}
        self._brought: dict[str, tuple[ModelVariant, Path | None]] = {}

    def route(
        self,
        model: str | Path | ModelVariant | None,
        *,
        task: Task | None = None,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        load_format: str = "auto",
    ) -> Route:
        """Resolve a model for a task. None takes the task's default; no name is ever answered by another model.

        Raises:
            UnknownModelError: no such id, repo or folder.
            WrongTaskError: the model does not do `task`; the message names some that do.
            IzwiError: this version lists the model but cannot run its family; the message names those it can.
            BackendUnavailableError: no backend here can run it.
        """
        if model is None:
            if task is None:
                raise InvalidInputError("Neither a model nor a task was named.", hint="Name a model.")
            variant, folder = catalog.default(task), None
        else:
            variant, folder = self._resolve(model)
        if task is not None and task not in variant.tasks:
            raise _wrong_task(variant, task)
        now = self._config or settings.load()
        wishes = (now.backend, now.device, now.dtype, str(now.mlx))
        asked = (source := str(folder or variant.id), backend, device, dtype, load_format, *wishes)
        known = self._routes.get(asked)
        if known is not None and known.variant == variant and self._in_memory(known.key):
            return known
        load.check_family(variant)
        plan = self._backends.select(variant, backend=backend, device=device, dtype=dtype)
        key = ModelKey(source, plan.backend, plan.device, plan.dtype, plan.quantisation, load_format)
        route = self._routes[asked] = Route(variant, plan, key, folder)
        return route

    def find(self, model: str | Path | ModelVariant) -> tuple[ModelVariant, Path | None]:
        """The variant that a name stands for, and its folder where the user brought one. Raises UnknownModelError."""
        return self._resolve(model)

    def source(self, model: str | Path | ModelVariant) -> str:
        """What the registry calls this model: its catalog id, or its folder."""
        variant, folder = self._resolve(model)
        return str(folder or variant.id)

    def obtain(
        self,
        route: Route,
        *,
        download: bool = True,
        progress: Callable[[Any], None] | None = None,
        cancel: CancelToken | None = None,
    ) -> LocalModel | None:
        """The files of a route, fetched if they are not here; None for load_format="dummy".

        Raises NotDownloadedError with download=False, ArtifactError when the fetch fails, Cancelled.
        """
        if route.key.load_format == "dummy":
            return None
        if route.folder is not None and route.folder.is_file():
            return artifacts.LocalModel(route.variant, route.folder, route.variant.layout, "local")
        if route.folder is not None:
            return artifacts.local(route.folder, variant=route.variant)
        here = artifacts.locate(route.variant, root=self._models_dir)
        if here is not None:
            return here
        if not download:
            raise NotDownloadedError(
                f"{route.variant.id} is not downloaded.",
                hint=f"Run: izwi-lab pull {route.variant.id}, or allow it with download=True.",
            )
        return artifacts.fetch(route.variant, root=self._models_dir, progress=progress, cancel=cancel)

    def _resolve(self, model: str | Path | ModelVariant) -> tuple[ModelVariant, Path | None]:
        if isinstance(model, ModelVariant):
            return model, None
        if not isinstance(model, (str, Path)) or not str(model).strip():
            raise InvalidInputError(f"model must be an id, a repo or a folder, got {model!r}.")
        name = str(model)
        if isinstance(model, Path) or _is_path(name) or name.lower().endswith(".gguf"):
            return self._folder(Path(model))
        if _REPO.fullmatch(name):
            return self._repo(name)
        return catalog.get(name), None

    def _folder(self, path: Path) -> tuple[ModelVariant, Path]:
        try:
            folder = path.expanduser().resolve()
            folder.is_dir()  # raises for a name longer than any file can have
        except (RuntimeError, OSError, ValueError) as error:  # no such user, a loop of links, a NUL in the name
            raise UnknownModelError(
                f"{str(path)!r} is no folder: {str(error).rstrip('.')}.", hint="Check the path."
            ) from None
        known = self._brought.get(str(folder))
        if known is None:
            known = self._brought[str(folder)] = (recognise.folder(folder), folder)
        return known[0], folder

    def _repo(self, repo: str) -> tuple[ModelVariant, Path | None]:
        with suppress(UnknownModelError):
            return catalog.get(repo), None
        if Path(repo).is_dir():
            return self._folder(Path(repo))
        if repo not in self._brought:
            self._brought[repo] = (recognise.repo(repo, self._models_dir), None)
        return self._brought[repo]


def _is_path(name: str) -> bool:
    """A name written as a path: absolute, starting with a dot or tilde, or with more than one separator."""
    parts = name.replace(os.sep, "/")
    return (
        parts.startswith(("/", "./", "../", "~"))
        or parts in (".", "..")
        or parts.count("/") > 1
        or (os.sep != "/" and os.sep in name)
    )


def _wrong_task(variant: ModelVariant, task: Task) -> WrongTaskError:
    working = load.working_families()
    able = [v.id for v in catalog.variants(task=task) if v.family in working]
    return WrongTaskError(
        f"{variant.id} does {', '.join(variant.tasks)}, not {task}.", hint=f"Models for {task}: {', '.join(able[:6])}."
    )
