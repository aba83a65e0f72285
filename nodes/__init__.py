"""The ComfyUI nodes: thin faces over `adcvsr_core`. Importing this package needs no ComfyUI; `make_extension` does."""


def make_extension():
    """Return ComfyUI's view of the pack."""
    from comfy_api.latest import ComfyExtension

    class AdcVSRExtension(ComfyExtension):
        async def get_node_list(self):
            return []

    return AdcVSRExtension()
