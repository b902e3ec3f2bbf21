"""A `trimtab serve` process with the demo's models, or others, for tests of clients."""

import contextlib
import pathlib
import shutil
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
TRIMTAB = ROOT / "target" / "release" / "trimtab"


@contextlib.contextmanager
def serving(*flags, chat=False, folders=None):
    """Yields the server's URL; `chat` gives the models chat templates of their own, `folders` are those of
    other models: base, tuned and untuned."""
    with tempfile.TemporaryDirectory() as folder:
        models = []
        names = ("base", "tuned", "untuned")
        for name, model in zip(names, folders or [ROOT / "models" / name for name in names]):
            if chat:
                copy = pathlib.Path(folder) / name
                shutil.copytree(model, copy)
                (copy / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
                model = copy
            models += [f"--{name}", str(model)]
        command = [str(TRIMTAB), "serve", *models, "--port", "0", "--kv-memory", "300M", *flags]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            url = None
            for line in server.stderr:
                if "listening on " in line:
                    url = line.split("listening on ")[1].strip()
                if "ready on " in line:
                    break
            if server.poll() is not None:
                raise SystemExit("the server did not start")
            yield url
            server.terminate()
            assert server.wait(timeout=60) == 0, "SIGTERM must end it in good order"
        finally:
            server.kill()
            server.wait()
