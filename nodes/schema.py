"""What the nodes' schemas share: our two types, menus that are checked, words that older ComfyUIs do not know."""

import inspect

from comfy_api.latest import io

from ..adcvsr_core.errors import ConfigError

Model = io.Custom("ADCVSR_MODEL")
Window = io.Custom("ADCVSR_WINDOW")

_NEWER = ("advanced", "search_aliases")


def made(kind, *args, **options):
    """Build a schema or an input, leaving out the newer options that this ComfyUI does not take."""
    known = inspect.signature(kind.__init__).parameters
    return kind(*args, **{key: value for key, value in options.items() if key not in _NEWER or key in known})


def schema(name: str, title: str, description: str, aliases: tuple[str, ...], **options) -> io.Schema:
    """Build the schema of one of this pack's nodes."""
    return made(
        io.Schema,
        node_id=f"AdcVSR_{name}",
        display_name=f"AdcVSR {title}",
        category="video/AdcVSR",
        description=description,
        search_aliases=["adcvsr", *aliases],
        **options,
    )


def refusal(node: type[io.ComfyNode], **values: str | None) -> str | bool:
    """Return True, or a message when a menu's value is none of its options; wires come as None and pass.

    ComfyUI 0.3.75 does not check the menus of V3 nodes by itself.
    """
    menus = {each.id: each.options for each in node.define_schema().inputs if isinstance(each, io.Combo.Input)}
    for name, value in values.items():
        value = value[0] if isinstance(value, (list, tuple)) else value  # as a node gets it that takes lists
        if value is not None and value not in menus[name]:
            return f"{name} {value!r} is none of: {', '.join(menus[name])}"
    return True


def require_offered(node: type[io.ComfyNode], **values: str) -> None:
    """Raise ConfigError where `refusal` has a message: what comes over a wire is seen only when the node runs."""
    said = refusal(node, **values)
    if said is not True:
        raise ConfigError(said)
