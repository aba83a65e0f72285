"""The ComfyUI nodes: thin faces over `adcvsr_core`. Importing this package needs no ComfyUI; `make_extension` does."""


def make_extension():
    """Return ComfyUI's view of the pack."""
    from comfy_api.latest import ComfyExtension

    from . import comfy_models, compare, degrade, finish, metrics, model, upscale, video, windows

    class AdcVSRExtension(ComfyExtension):
        async def get_node_list(self):
            return [
                model.LoadModel,
                upscale.Upscale,
                video.UpscaleVideo,
                finish.Finish,
                windows.SplitWindows,
                windows.StitchWindows,
                compare.Compare,
                metrics.Metrics,
                degrade.Degrade,
            ]

    comfy_models.register_model_folder()
    return AdcVSRExtension()
