"""Chromium without a window, driven through a pair of pipes with the DevTools protocol: JSON objects, each with a zero
byte behind it (--remote-debugging-pipe). Nothing but the standard library."""

import json
import os
import select
import shutil
import subprocess
import tempfile
import time

# For whatever is waited for; nothing that works takes a noticeable part of it.
LIMIT_S = 120

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]


class Browser:
    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="kurultai-chromium-")
        to_browser, self.write_fd = os.pipe()
        self.read_fd, from_browser = os.pipe()
        # The browser reads from its descriptor 3 and writes to 4, whatever they are here.
        command = 'exec chromium "$@" 3<&%d 4>&%d' % (to_browser, from_browser)
        self.process = subprocess.Popen(
            ["sh", "-c", command, "sh", "--user-data-dir=" + self.profile, *FLAGS, "about:blank"],
            pass_fds=(to_browser, from_browser), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env={"PATH": os.environ["PATH"], "HOME": self.profile, "TZ": "UTC"})
        os.close(to_browser)
        os.close(from_browser)
        self.unread = b""
        self.last_id = 0
        self.answers = {}
        self.listeners = {}

    def close(self):
        os.close(self.write_fd)
        os.close(self.read_fd)
        try:
            self.process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)

    def send(self, method, session=None, **params):
        self.last_id += 1
        message = {"id": self.last_id, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.write_fd, json.dumps(message).encode() + b"\0")
        return self.last_id

    def call(self, method, session=None, **params):
        wanted = self.send(method, session, **params)
        end = time.monotonic() + LIMIT_S
        while wanted not in self.answers:
            self.receive(end, method)
        answer = self.answers.pop(wanted)
        if "error" in answer:
            raise RuntimeError("%s: %s" % (method, answer["error"]))
        return answer["result"]

    def receive(self, end, what):
        """Takes what comes next; an event goes to whoever listens in its session."""
        left = end - time.monotonic()
        if left <= 0 or not select.select([self.read_fd], [], [], left)[0]:
            raise TimeoutError("chromium has not answered %s within %d s" % (what, LIMIT_S))
        piece = os.read(self.read_fd, 1 << 20)
        if not piece:
            raise RuntimeError("chromium has ended with %s" % self.process.wait())
        *messages, self.unread = (self.unread + piece).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self.answers[message["id"]] = message
            elif message.get("sessionId") in self.listeners:
                self.listeners[message["sessionId"]](message["method"], message["params"])


class Tab:
    """One page, and everything that was wrong with it: what the console, the policy or an exception said."""

    def __init__(self, browser, password=None):
        self.browser = browser
        self.complaints = []
        self.password = password
        self.asked = 0
        context = browser.call("Target.createBrowserContext")["browserContextId"]
        self.target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=self.target, flatten=True)["sessionId"]
        browser.listeners[self.session] = self.heard
        for domain in ["Page", "Runtime", "Log", "Network", "Audits"]:
            self.call(domain + ".enable")
        if password is not None:
            self.call("Fetch.enable", handleAuthRequests=True)

    def call(self, method, **params):
        return self.browser.call(method, self.session, **params)

    def heard(self, method, params):
        if method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(params["args"])
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"])
        elif method == "Audits.issueAdded" and "Security" in params["issue"]["code"]:
            self.complaints.append(params["issue"])
        elif method == "Fetch.requestPaused":
            self.browser.send("Fetch.continueRequest", self.session, requestId=params["requestId"])
        elif method == "Fetch.authRequired":
            # What the person before the browser would do.
            self.asked += 1
            answer = {"response": "ProvideCredentials", "username": "", "password": self.password}
            if self.asked > 1:
                answer = {"response": "CancelAuth"}
            self.browser.send("Fetch.continueWithAuth", self.session, requestId=params["requestId"],
                              authChallengeResponse=answer)

    def open(self, url):
        failed = self.call("Page.navigate", url=url).get("errorText")
        if failed:
            raise RuntimeError("%s: %s" % (url, failed))
        self.until("document.readyState === 'complete'")

    def value(self, expression):
        """Of an expression of JavaScript, awaited if it is a promise."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError("%s: %s" % (expression, answer["exceptionDetails"]))
        return answer["result"].get("value")

    def until(self, expression):
        """Its value, as soon as it is truthy."""
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            found = self.value(expression)
            if found:
                return found
            time.sleep(0.05)
        text = self.value("document.documentElement.innerText")
        raise AssertionError("not within %d s: %s\n%s" % (LIMIT_S, expression, text))

    def resize(self, width, height):
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
