"""ComfyUI finds the pack here. Nothing is imported before ComfyUI asks, so that tests and tools can pass by."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Return the extension that lists this pack's nodes."""
    from .nodes import make_extension

    return make_extension()
