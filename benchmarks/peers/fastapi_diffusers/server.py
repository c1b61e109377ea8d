"""A plain server of diffusers: FastAPI, one pipeline, and a lock around it, as tutorials show it.

    python server.py MODEL_FOLDER PORT

`POST /generate` takes prompt, steps, guidance_scale, seed and scheduler, and returns {"b64_json": ...}, a PNG.
"""

import base64
import io
import sys
import threading
from typing import Any

import diffusers
import torch
import uvicorn
from fastapi import FastAPI

SCHEDULERS = {
    "euler": "EulerDiscreteScheduler",
    "euler_a": "EulerAncestralDiscreteScheduler",
    "ddim": "DDIMScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}


def create_app(folder: str) -> FastAPI:
    """Return the server of one model."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    config, lock, app = dict(pipe.scheduler.config), threading.Lock(), FastAPI()

    @app.get("/health/ready")
    def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/generate")
    def generate(body: dict[str, Any]) -> dict[str, str]:
        with lock:
            pipe.scheduler = getattr(diffusers, SCHEDULERS[body["scheduler"]]).from_config(config)
            image = pipe(
                body["prompt"],
                num_inference_steps=body["steps"],
                guidance_scale=body["guidance_scale"],
                generator=torch.Generator().manual_seed(body["seed"]),
            ).images[0]
        data = io.BytesIO()
        image.save(data, "PNG")
        return {"b64_json": base64.b64encode(data.getvalue()).decode()}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
