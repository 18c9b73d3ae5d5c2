"""Things by name: those of the package, those that a script registers, and those that installed packages bring.

A package brings something by an entry point: `[project.entry-points."afactl.backbones"] mine = "module:Class"`. Names
are known without importing anything, so the command line can offer them at once; what stands behind a name is imported
when it is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import metadata
from typing import NamedTuple

from afactl.errors import AfactlError, DependencyError, PresetError, UsageError, first_line, nearest


class Provider(NamedTuple):
    """Who brings a name, in words, and where it is imported from; None: it was registered in this process."""

    owner: str
    source: metadata.EntryPoint | None


class Registry:
    """One kind of thing by name.

    Args:
        setting: how a user asks for one, such as `model.backbone`; messages begin with it.
        group: of the entry points of other packages.
        built_in: name -> "module:attribute".
    """

    def __init__(self, setting: str, group: str, built_in: Mapping[str, str]) -> None:
        self.setting, self.group = setting, group
        self._built_in = {name: metadata.EntryPoint(name, value, group) for name, value in built_in.items()}
        self._registered: dict[str, object] = {}

    def register(self, name: str, entry: object) -> None:
        """Make `entry` available under a name of its own.

        Raises:
            UsageError: the name is taken.
        """
        owners = [provider.owner for provider in self.providers(name)]
        if owners:
            raise UsageError(f'{self.setting}: "{name}" is taken by {owners[0]}; register it under another name')
        self._registered[name] = entry

    def names(self) -> list[str]:
        """All names: those of the package in their own order, then the others sorted."""
        return [*self._built_in, *self.others()]

    def others(self) -> list[str]:
        """Names that are none of the package's own: registered by a program or brought by others, sorted."""
        return sorted({*self._registered, *self.added()} - self._built_in.keys())

    def added(self) -> list[str]:
        """Names that installed packages bring, sorted."""
        return sorted({point.name for point in installed(self.group)})

    def providers(self, name: str) -> list[Provider]:
        """Everyone who brings this name; one, unless packages contradict each other."""
        providers = [Provider("afactl itself", self._built_in[name])] if name in self._built_in else []
        providers += [Provider("this program", None)] if name in self._registered else []
        return providers + [Provider(_package(point), point) for point in installed(self.group) if point.name == name]

    def get(self, name: str) -> object:
        """What stands behind a name.

        Raises:
            PresetError: nothing; offers the nearest name. UsageError: two packages bring it.
            DependencyError: it cannot be imported; names the package.
        """
        providers = self.providers(name)
        if not providers:
            raise PresetError(f'{self.setting}: "{name}" is unknown{nearest(name, self.names())}')
        if len(providers) > 1:
            owners = " and ".join(provider.owner for provider in providers)
            raise UsageError(f'{self.setting}: "{name}" is brought by {owners}; uninstall one of them')
        owner, source = providers[0]
        return self._registered[name] if source is None else imported(source, f'{self.setting}: "{name}" of {owner}')

    def strange(self, name: str, entry: object, expected: str) -> PresetError:
        """The error for an entry that is not what it should be."""
        owner = self.providers(name)[0].owner
        return PresetError(f'{self.setting}: "{name}" of {owner} is {_kind(entry)}; expected {expected}')


def imported(point: metadata.EntryPoint, what: str) -> object:
    """The object that an entry point names.

    Args:
        what: it is, for the message.

    Raises:
        DependencyError: its module cannot be imported, or has no such attribute.
    """
    try:
        entry: object = point.load()
    except AfactlError:  # it says what is wrong better than could be said here
        raise
    except Exception as error:  # whatever a module of others raises, the remedy is one
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DependencyError(f"{what} cannot be imported ({reason}); mend, update or uninstall it") from error
    return entry


@functools.lru_cache
def installed(group: str) -> tuple[metadata.EntryPoint, ...]:
    """The entry points of a group, of all packages; reading them takes some hundredths of a second."""
    return tuple(metadata.entry_points(group=group))


def _package(point: metadata.EntryPoint) -> str:
    return f"the package {point.dist.name}" if point.dist is not None else "a package without a name"


def _kind(entry: object) -> str:
    return f"the class {entry.__name__}" if isinstance(entry, type) else f"a {type(entry).__name__}"
