"""How a saved graph becomes what ComfyUI executes. Knows neither ComfyUI nor pytest, so that both sides may ask."""

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def prompt_of(workflow: dict, described: dict[str, dict]) -> dict:
    """Turn a saved graph into a prompt as the front end does, and refuse widgets that the schema does not explain.

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
        inputs, values = dict(wires), list(each["widgets_values"])
        for name, (kind, *options) in {**required, **optional}.items():
            if isinstance(kind, str) and kind not in WIDGETS:
                assert name in wires or name not in required, f"{each['type']}.{name} is not connected"
                continue
            value = values.pop(0)
            inputs.setdefault(name, value)
            if name == "seed" or any(key.endswith("_upload") for key in (options or [{}])[0]):
                values.pop(0)  # the front end's own widgets: what to do with the seed next, the upload button
        assert not values, f"{each['type']} has widgets too many: {values}"
        assert not set(inputs) - set(required) - set(optional), each["type"]
        prompt[str(each["id"])] = {"class_type": each["type"], "inputs": inputs}
    return prompt
