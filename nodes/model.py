"""AdcVSR Load Model."""

import os

from comfy_api.latest import io

from . import comfy
from .schema import Model, refusal, schema


class LoadModel(io.ComfyNode):
    """Choose a model; ComfyUI moves its weights between RAM and GPU."""

    @classmethod
    def define_schema(cls):
        return schema(
            "LoadModel",
            "Load Model",
            "Loads an AdcVSR model. The small default model comes with the pack; other models go into models/adcvsr.",
            ("video upscaler", "super resolution", "loader"),
            inputs=[
                io.Combo.Input(
                    "model",
                    options=comfy.model_names(),
                    default="default",
                    tooltip="Bundled models first, then the .safetensors files of models/adcvsr. Official AdcSR files "
                    "(.pkl, .ckpt) are listed too: choosing one tells the one command that converts them.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=["auto", *comfy.DTYPES],
                    default="auto",
                    tooltip="Number format of the weights. auto = bf16 on GPUs that are good at it, else fp32. bf16 "
                    "and fp16 take half the memory; fp16 may overflow, and then a shot goes on in fp32.",
                ),
            ],
            outputs=[Model.Output("adcvsr_model", display_name="model", tooltip="For Upscale and Upscale Video.")],
        )

    @classmethod
    def fingerprint_inputs(cls, model, dtype):
        file = comfy.model_file(model)
        return (model, dtype, os.stat(file).st_mtime_ns if os.path.isfile(file) else 0)

    @classmethod
    def validate_inputs(cls, model=None, dtype=None):
        return refusal(cls, model=model, dtype=dtype)

    @classmethod
    def execute(cls, model, dtype):
        return io.NodeOutput(comfy.load_model(model, dtype))
