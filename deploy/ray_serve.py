"""qwench over many replicas, with Ray Serve (pip install "qwench[ray]"):

    serve run deploy.ray_serve:app model=Qwen/Qwen2.5-7B-Instruct weights=int8 replicas=2 num_cpus=16

docs/distributed.md, "Replicas", says what else it takes. Where there is no clone, `qwench.replicas.application:app` is
the same.
"""

from qwench.replicas.application import app

__all__ = ["app"]
