"""Parameters of an object as scikit-learn expects them, without scikit-learn."""
from __future__ import annotations

import inspect
from typing import Any, Self


class Parameters:
    """Gives `get_params` and `set_params` for the arguments of `__init__`, kept as they are."""

    @classmethod
    def _parameter_names(cls) -> list[str]:
        return [name for name in inspect.signature(cls.__init__).parameters if name != "self"]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of the constructor, by name.

        Parameters
        ----------
        deep : bool
            Also those of arguments that have parameters themselves, as "argument__name".

        Returns
        -------
        dict
        """
        found = {name: getattr(self, name) for name in self._parameter_names()}
        if deep:
            for name, value in list(found.items()):
                if hasattr(value, "get_params") and not isinstance(value, type):
                    found |= {f"{name}__{key}": inner for key, inner in value.get_params().items()}
        return found

    def set_params(self, **params: Any) -> Self:
        """Set arguments of the constructor, for the next `fit`.

        Parameters
        ----------
        **params
            By the names of `get_params`.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If there is no such argument.
        """
        names = self._parameter_names()
        inner: dict[str, dict[str, Any]] = {}
        for key, value in params.items():
            name, is_inner, rest = key.partition("__")
            if name not in names:
                raise ValueError(f"{name!r} is no argument of {type(self).__name__}; it takes "
                                 f"{', '.join(names)}")
            if is_inner:
                inner.setdefault(name, {})[rest] = value
            else:
                setattr(self, name, value)
        for name, values in inner.items():
            if not hasattr(getattr(self, name), "set_params"):
                raise ValueError(f"{name}={getattr(self, name)!r} has no parameters to set; give "
                                 "an object that has them first")
            getattr(self, name).set_params(**values)
        return self

    def __repr__(self) -> str:
        defaults = inspect.signature(type(self).__init__).parameters
        changed = [f"{name}={value!r}" for name, value in self.get_params(deep=False).items()
                   if not _same(value, defaults[name].default)]
        return f"{type(self).__name__}({', '.join(changed)})"


def _same(a: Any, b: Any) -> bool:
    return a is b or (type(a) is type(b) and bool(a == b))
