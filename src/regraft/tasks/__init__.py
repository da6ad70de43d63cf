"""The task group's catalogue: what is learnt, and how it is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regraft.registry import Group, Named

if TYPE_CHECKING:
    from regraft.tasks.classify import ClassifyModule


class TaskSpec(Named):
    """Common to all tasks."""

    def build(self, *arguments: Any, **keywords: Any) -> ClassifyModule:
        """The Lightning module of one phase; takes what `ClassifyModule` takes."""
        raise NotImplementedError


class Classify(TaskSpec):
    """One label for each picture: accuracy."""

    def build(self, *arguments: Any, **keywords: Any) -> ClassifyModule:
        from regraft.tasks.classify import ClassifyModule

        return ClassifyModule(*arguments, **keywords)


GROUP = Group("task", {"classify": Classify}, about="what is learnt, and how it is measured")
