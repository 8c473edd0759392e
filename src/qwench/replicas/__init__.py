"""The server as many replicas, with Ray Serve: `serve run deploy.ray_serve:app`.

    client -> Ray's proxy -> Ingress -> Replica -> its engine and text processes

Ingress (ingress.py) reads a request and sends it to the replica that has the conversation's prefix (conversation.py,
router.py), or to another one if that fails; Replica (replica.py) is the server that `qwench serve` runs. options.py and
application.py say what is deployed. The command line's sibling: it takes the same options.
"""
