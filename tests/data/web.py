"""A loopback web server that fails as it is told to."""

import hashlib
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Web:
    """Serves ``files``; each path does what its ``script`` says, one word a request, then behaves.

    Words: a number (that status), ``stall`` (no byte until the end), ``half`` (half of the body, then it hangs up), ``long`` and ``short`` (a
    length above and below the body's), ``hang`` (half of the body, then silence), ``to:URL`` (a redirect), ``tag:NAME`` (another etag).
    """

    def __init__(self):
        self.files, self.script, self.hits, self.headers = {}, {}, Counter(), []
        self.closing = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                web.headers.append(dict(self.headers))
                web.answer(self)

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):  # a client that leaves in the middle is what some tests are about
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request):
        path = request.path.partition("?")[0]
        self.hits[path] += 1
        words = self.script.get(path, [])
        word = words.pop(0) if words else ""
        body = self.files.get(path)
        if word == "stall":
            self.closing.wait(20)
            return
        if word.isdigit() or word.startswith("to:") or body is None:
            request.send_response(int(word) if word.isdigit() else 302 if word else 404)
            if word.startswith("to:"):
                request.send_header("Location", word[3:])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        length = {"long": len(body) + 512, "short": len(body) - 1024}.get(word, len(body))
        request.send_response(200)
        request.send_header("Content-Length", str(length))
        request.send_header("ETag", word[4:] if word.startswith("tag:") else f'"{hashlib.sha1(body).hexdigest()}"')
        request.end_headers()
        request.wfile.write(body[: len(body) // 2] if word in ("half", "hang") else body)
        request.wfile.flush()
        if word == "hang":
            self.closing.wait(20)

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
