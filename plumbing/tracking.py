"""Weights & Biases, if asked for: it can neither block, prompt nor end a run."""

import contextlib
import os
import socket
import threading
import urllib.parse
from pathlib import Path

WANDB_SECONDS = 2.0  # how long a run waits for W&B's server at its start, and again at its end


def limited(function):
    """Call this in a thread, and wait for it no longer than WANDB_SECONDS; errors are dropped."""

    def safely():
        with contextlib.suppress(Exception):
            function()

    thread = threading.Thread(target=safely, daemon=True)
    thread.start()
    thread.join(WANDB_SECONDS)


def start_wandb(mode, folder, experiment, config, log=print, project="sudoku"):
    """A W&B run, or None: asking for one never blocks, prompts or ends a run."""
    if mode == "off":
        return None
    try:
        import wandb

        if mode == "online":
            server = urllib.parse.urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
            address, answers = (server.hostname, server.port or {"http": 80}.get(server.scheme, 443)), []
            limited(lambda: answers.append(socket.create_connection(address, WANDB_SECONDS).close()))
            reason = "" if answers else f"{server.hostname} does not answer"
            if answers and not (os.environ.get("WANDB_API_KEY") or wandb.api.api_key):
                reason = "no API key (wandb login)"
            if reason:
                log(f"# W&B: {reason}; recording offline, `wandb sync` sends it later")
                mode = "offline"
        settings = wandb.Settings(init_timeout=WANDB_SECONDS, silent=True, console="off")
        name = f"{experiment}-{Path(folder).name}"
        return wandb.init(
            project=project, name=name, id=name, resume="allow", mode=mode, dir=folder, config=config, settings=settings
        )
    except Exception as error:
        log(f"# W&B is left out: {error}")
        return None
