"""What a run is: the name of its experiment and the arguments it was made with."""

import functools
import hashlib
import inspect
import json
from collections.abc import Callable
from typing import Any

from aigc_jax.core.types import Experiment


def identify(make: Callable[..., Experiment], **arguments: Any) -> dict[str, Any]:
    """Return the identity of the experiment that `make(**arguments)` makes, defaults included.

    >>> def vae(*, beta: float = 1.0, width: int = 400) -> Experiment: ...
    >>> identify(vae, beta=4.0)
    {'experiment': 'vae', 'arguments': {'beta': 4.0, 'width': 400}}
    >>> identify(functools.partial(vae, width=200))
    {'experiment': 'vae', 'arguments': {'beta': 1.0, 'width': 200}}
    """
    name = make.func.__name__ if isinstance(make, functools.partial) else make.__name__
    defaults = {n: p.default for n, p in inspect.signature(make).parameters.items()}
    return {"experiment": name, "arguments": defaults | arguments}


def digest(identity: dict[str, Any]) -> str:
    """Return eight hexadecimal digits that stand for an identity."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
