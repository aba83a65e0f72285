"""AdcVSR Load Model."""

import os

from comfy_api.latest import io

from ..adcvsr_core.checkpoint import rich_partner
from ..adcvsr_core.lora import MAX_STRENGTH
from . import comfy_models as models
from .schema import Model, refusal, require_offered, schema


class LoadModel(io.ComfyNode):
    """Choose a model, and a LoRA to put on it; ComfyUI moves its weights between RAM and GPU."""

    @classmethod
    def define_schema(cls):
        return schema(
            "LoadModel",
            "Load Model",
            "Loads an AdcVSR model. The small default model comes with the pack; other models go into models/adcvsr.",
            ("video upscaler", "super resolution", "loader", "lora"),
            inputs=[
                io.Combo.Input(
                    "model",
                    options=models.model_names(),
                    default="default",
                    tooltip="Bundled models first, then the .safetensors files of models/adcvsr. Official AdcSR files "
                    "(.pkl, .ckpt) are listed too: choosing one tells the one command that converts them.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *models.DTYPES],
                    default="auto",
                    tooltip="Number format of the weights. auto = bf16 on GPUs that are good at it, else fp32. bf16 "
                    "and fp16 take half the memory; fp16 may overflow, and then a shot goes on in fp32.",
                ),
                io.Combo.Input(
                    "lora",
                    options=models.model_names(loras=True),
                    default=models.NO_LORA,
                    optional=True,
                    tooltip="A LoRA made by this project's training, from models/adcvsr: a small file that changes the "
                    "model it was trained on, for example towards your own footage. Costs no time when it runs.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=1.0,
                    min=-MAX_STRENGTH,
                    max=MAX_STRENGTH,
                    step=0.05,
                    optional=True,
                    tooltip="How strongly the LoRA counts: 1 = as it was trained, 0 = the model alone, above 1 "
                    "exaggerates, below 0 does the opposite.",
                ),
                io.Float.Input(
                    "fidelity",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    optional=True,
                    tooltip="1 = invents nothing, 0 = the richest detail that the model was taught to draw; between "
                    "them its weights are mixed. Below 1 only for models with a rich partner, such as default.",
                ),
            ],
            outputs=[Model.Output("adcvsr_model", display_name="model", tooltip="For Upscale and Upscale Video.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model, dtype, lora=models.NO_LORA, lora_strength=1.0, fidelity=1.0):
        files = [models.model_file(name) for name in (model, lora) if name not in (None, models.NO_LORA)]
        if fidelity is not None and fidelity < 1 and model is not None:
            files += filter(None, [rich_partner(files[0])])
        return (
            dtype,
            lora_strength,
            fidelity,
            *((each, os.path.isfile(each) and os.stat(each).st_mtime_ns) for each in files),
        )

    @classmethod
    def validate_inputs(cls, model=None, dtype=None, lora=None):
        said = refusal(cls, model=model, lora=lora)
        return refusal(cls, dtype=dtype) if said is True else f"{said}; put files into models/{models.FOLDER}, press R"

    @classmethod
    def execute(cls, model, dtype, lora=models.NO_LORA, lora_strength=1.0, fidelity=1.0):
        require_offered(cls, dtype=dtype)
        return io.NodeOutput(models.load_model(model, dtype, lora, lora_strength, fidelity))
