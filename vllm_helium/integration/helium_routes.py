"""Hook ``helium-routes``: puts ``/v1/helium`` on the API server."""

from __future__ import annotations

import argparse

from fastapi import FastAPI

from vllm_helium.config import make_helium_config
from vllm_helium.integration.openai_workflow_field import accept_workflows


def register_helium_routes(app: FastAPI, args: argparse.Namespace) -> None:
    """Adds our routes where the server was started with Helium; else does nothing.

    Cached tokens are part of every usage report then, without upstream's switch for it.
    """
    if make_helium_config(getattr(args, "helium", None)) is None:
        return
    from vllm_helium.serving.routes import router

    accept_workflows()
    args.enable_prompt_tokens_details = True
    app.include_router(router)
