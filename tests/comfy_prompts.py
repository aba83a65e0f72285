"""How a saved graph becomes what ComfyUI executes. Knows neither ComfyUI nor pytest, so that both sides may ask."""

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
DYNAMIC = "COMFY_DYNAMICCOMBO_V3"  # a menu whose choice brings inputs of its own, named "menu.input"

# What to change in the examples, by node type and input, to spare the machine: all frames, but small ones.
_SMALL = {"scale": 0.5, "height": 0, "work_size": 24}
_SMALLER = {"AdcVSR_Upscale": _SMALL, "AdcVSR_UpscaleVideo": _SMALL, "AdcVSR_Finish": {"height": 64}}
_BACK_TO_SIZE = {"AdcVSR_Degrade": {"scale": 2}, "AdcVSR_Upscale": {"scale": 2.0, "work_size": 24}}


def changes_of(workflow: str) -> dict[str, dict]:
    """Return what to change in an example, `{node type: {input: value}}`, so that it runs in seconds."""
    return _BACK_TO_SIZE if workflow == "degrade_and_restore_lab" else _SMALLER


def prompt_of(workflow: dict, described: dict[str, dict]) -> dict:
    """Turn a saved graph into a prompt as the front end does, and refuse widgets that the schema does not explain.

    ComfyUI's own nodes may have learned more inputs since the graph was saved, which then get their defaults; ours
    may not.

    Args:
        workflow: The graph, in the format that the front end saves.
        described: What the class of each node takes: `{"required": {...}, "optional": {...}}`.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for each in workflow["nodes"]:
        if each["type"] == "MarkdownNote":
            continue
        required, optional = (described[each["type"]].get(key, {}) for key in ("required", "optional"))
        wires = {entry["name"]: links[entry["link"]] for entry in each["inputs"] if entry["link"] is not None}
        missing = [name for name, entry in required.items() if not _is_widget(entry) and name not in wires]
        assert not missing, f"{each['type']}.{missing} is not connected"
        inputs, values = dict(wires), list(each["widgets_values"])
        for name, entry in {**required, **optional}.items():
            _fill(inputs, name, entry, values, grown=not each["type"].startswith("AdcVSR_"))
        assert not values, f"{each['type']} has widgets too many: {values}"
        assert not {name.split(".")[0] for name in inputs} - set(required) - set(optional), each["type"]
        prompt[str(each["id"])] = {"class_type": each["type"], "inputs": inputs}
    return prompt


def _is_widget(entry: list | tuple) -> bool:
    return not isinstance(entry[0], str) or entry[0] in (*WIDGETS, DYNAMIC)


def _fill(inputs: dict, name: str, entry: list | tuple, values: list, grown: bool) -> None:
    """Move an input's saved value from `values` to `inputs`; `grown` allows that there is none."""
    if not _is_widget(entry):
        return
    kind, options = entry[0], entry[1] if len(entry) > 1 else {}
    assert values or grown, f"nothing is saved for {name}"
    menu = kind if isinstance(kind, list) else options.get("options")
    if kind == DYNAMIC:
        menu = [each["key"] for each in options["options"]]
    value = values.pop(0) if values else options.get("default", menu[0] if menu else None)
    inputs.setdefault(name, value)
    if name == "seed" or any(key.endswith("_upload") for key in options):
        values.pop(0)  # the front end's own widgets: what to do with the seed next, the upload button
    if kind == DYNAMIC:
        chosen = next(each["inputs"] for each in options["options"] if each["key"] == value)
        for nested in chosen.values():
            for key, below in nested.items():
                _fill(inputs, f"{name}.{key}", below, values, grown)
