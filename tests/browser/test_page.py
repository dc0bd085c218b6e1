#!/usr/bin/env python3
"""The status page in a real browser: the script shows what the server would, stays in its place, and breaks no rule of
its policy. KURULTAID names the daemon's program."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True
from chromium import LIMIT_S, Browser, Tab  # noqa: E402

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))
DAEMON = os.environ.get("KURULTAID", os.path.join(TOP, "target", "debug", "kurultaid"))
EVIL = "<script>document.title = 'evil'</script><img src=x onerror=\"alert(1)\">"

CONFIG = """
[daemon]
state_dir = "{home}/state"
runtime_dir = "{home}/run"
[gateway]
listen = "127.0.0.1:{port}"
{gateway}
[memory]
limit_mb = {limit}
sources = ["budget"]
min_free_mb = 0
[queue]
max_depth = 50
priority_limits = {{ critical = 50, high = 50, normal = 50, low = 50, heartbeat = 50 }}
[workers]
max = 2
soft_limit_mb = 100
cancel_grace_ms = 100
[agents.sleeper]
command = ["{top}/tests/agents/sleeper"]
mode = "persistent"
[breakers.mirror]
failure_threshold = 1
[breakers.spare]
"""

# Elements that the script keeps up to date, compared with those of a page that the server makes now.
SAME = """
fetch('/').then((answer) => answer.text()).then((text) => {
  const made = new DOMParser().parseFromString(text, 'text/html');
  const ids = ['health', 'alerts', 'tiles', 'peak', 'curve', 'area', 'sources', 'workers', 'queue', 'waiting', 'breakers',
    'decisions'];
  window.different = ids.filter((id) => made.getElementById(id).outerHTML !== document.getElementById(id).outerHTML)
    .map((id) => [made.getElementById(id).outerHTML, document.getElementById(id).outerHTML]);
  return !window.different.length;
})"""


class Daemon:
    def __init__(self, limit=4096, token=None):
        self.home = tempfile.mkdtemp(prefix="kurultai-")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.limit, self.token = limit, token
        gateway = ""
        if token:
            gateway = 'token_file = "%s/token"' % self.home
            with open(os.open(self.home + "/token", os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
                file.write(token)
        self.configure(gateway=gateway)
        self.log = open(self.home + "/log", "w")
        self.process = subprocess.Popen([DAEMON, "--config", self.home + "/kurultai.toml"], stderr=self.log,
                                        env={"PATH": os.environ["PATH"]})
        self.wait_for("it answers", self.answers)

    def configure(self, gateway="", more=""):
        with open(self.home + "/kurultai.toml", "w") as file:
            file.write(CONFIG.format(home=self.home, port=self.port, top=TOP, limit=self.limit, gateway=gateway) + more)

    def answers(self):
        if self.process.poll() is not None:
            with open(self.home + "/log") as log:
                raise AssertionError("the daemon has ended: " + log.read())
        try:
            return self.ask("GET", "/health?live")[0] == 200
        except OSError:
            return False

    @staticmethod
    def wait_for(what, holds):
        end = time.monotonic() + LIMIT_S
        while not holds():
            if time.monotonic() > end:
                raise AssertionError("not within %d s: %s" % (LIMIT_S, what))
            time.sleep(0.02)

    @property
    def url(self):
        return "http://127.0.0.1:%d/" % self.port

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            headers = {"Authorization": "Bearer " + self.token} if self.token else {}
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def submit(self, payload, priority="normal"):
        status, text = self.ask("POST", "/v1/tasks", {"agent": "sleeper", "payload": payload, "priority": priority})
        assert status == 202, text
        return json.loads(text)["id"]

    def pages(self):
        """How often the page itself was asked for."""
        for line in self.ask("GET", "/metrics")[1].decode().splitlines():
            if line.startswith('kurultai_http_requests_total{route="/",code="200"}'):
                return int(line.split()[-1])
        return 0

    def close(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(LIMIT_S)
        self.log.close()
        shutil.rmtree(self.home, ignore_errors=True)


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()

    def daemon(self, **settings):
        daemon = Daemon(**settings)
        self.addCleanup(daemon.close)
        return daemon

    def opened(self, daemon):
        tab = Tab(self.browser, daemon.token)
        tab.open(daemon.url)
        tab.value("window.isTheSame = true")
        return tab

    def updates(self, tab, more):
        seen = tab.value("Number(document.body.dataset.updates || 0)")
        tab.until("Number(document.body.dataset.updates || 0) >= %d" % (seen + more))

    def is_sound(self, tab):
        self.assertEqual(tab.complaints, [], "complaints of the browser")
        self.assertTrue(tab.value("window.isTheSame === true"), "it was not loaded anew")

    def is_as_the_server_makes_it(self, tab):
        try:
            tab.until(SAME)
        except AssertionError:
            self.fail("\n".join("server: %s\nscript: %s" % tuple(pair) for pair in tab.value("window.different")))

    def test_a_task_that_starts_appears_by_itself(self):
        daemon = self.daemon()
        tab = self.opened(daemon)
        self.assertIn("free", tab.value("document.getElementById('workers').innerText"))
        task = daemon.submit({"ms": 600000, "mb": 30})
        tab.until("document.querySelector('#workers a')?.textContent === '%s'" % task)
        tab.until("document.getElementById('workers').innerText.includes('busy')")
        tab.until("document.getElementById('tiles').innerText.includes('1 / 2')")
        tab.until("document.getElementById('decisions').innerText.includes('TASK_STARTED')")
        self.assertEqual(tab.value("document.querySelector('#workers a').href"), daemon.url + "v1/tasks/" + task)
        self.assertEqual(daemon.pages(), 1, "everything else came from the API")
        self.is_sound(tab)

    def test_the_script_and_the_server_make_the_same(self):
        daemon = self.daemon(limit=1024)
        tab = self.opened(daemon)
        self.updates(tab, 1)
        self.is_as_the_server_makes_it(tab)
        failed = daemon.submit({"ms": 0, "fail": EVIL})
        Daemon.wait_for("it fails", lambda: b'"failed"' in daemon.ask("GET", "/v1/tasks/" + failed)[1])
        for number in range(12):
            daemon.submit({"ms": 600000, "mb": 120 if number == 0 else 0}, ["normal", "high", "low"][number % 3])
        daemon.ask("POST", "/v1/breakers/mirror/open")
        daemon.ask("POST", "/v1/tasks", {"agent": EVIL})
        daemon.configure(more='[breakers."%s"]\n' % EVIL.replace('"', "'"))
        self.assertEqual(daemon.ask("POST", "/v1/reload")[0], 400)
        tab.until("document.querySelectorAll('#workers .fill.warning').length === 1")
        tab.until("document.getElementById('waiting').innerText.includes(' and ')")
        tab.until("document.getElementById('alerts').innerText.includes('the old one is in force')")
        self.assertIn(EVIL, tab.value("document.getElementById('decisions').innerText"), "as text")
        self.is_as_the_server_makes_it(tab)
        self.assertEqual(tab.value("document.querySelectorAll('script, img').length"), 1, "its own script alone")
        self.is_sound(tab)

    def test_pressure_changes_the_picture_and_the_level(self):
        daemon = self.daemon(limit=100)
        tab = self.opened(daemon)
        self.assertEqual(tab.value("document.getElementById('level').textContent"), "Normal")
        daemon.submit({"ms": 600000, "mb": 60})
        tab.until("document.getElementById('level').textContent === 'Warning'")
        tab.until("document.getElementById('incident').textContent === 'incident mem-1'")
        self.assertEqual(tab.value("document.title"), "Warning · Kurultai")
        highest = "Math.min(...[...document.getElementById('curve').points].map((point) => point.y))"
        self.assertLessEqual(tab.value(highest), 300, "the curve is above the line of 70 %")
        self.is_as_the_server_makes_it(tab)
        self.is_sound(tab)

    def test_the_token_is_asked_for_once(self):
        daemon = self.daemon(token="correct-horse-battery")
        task = daemon.submit({"ms": 600000})
        tab = self.opened(daemon)
        tab.until("document.querySelector('#workers a')?.textContent === '%s'" % task)
        self.updates(tab, 2)
        self.assertEqual(tab.asked, 1, "the browser sends it by itself after that")
        # The challenge itself is an answer of 401, and said to the console.
        tab.complaints = [said for said in tab.complaints if "401" not in str(said)]
        self.is_sound(tab)

    def test_a_wrong_token_shows_what_to_do_and_no_figure(self):
        daemon = self.daemon(token="correct-horse-battery")
        tab = Tab(self.browser, "wrong")
        tab.open(daemon.url)
        text = tab.value("document.body.innerText")
        self.assertIn("gateway.token_file", text)
        self.assertNotIn("Workers", text)
        self.assertNotEqual(tab.value("getComputedStyle(document.querySelector('section')).borderTopStyle"), "none",
                            "its policy lets its style be")

    def test_a_hidden_tab_rests(self):
        daemon = self.daemon()
        tab = self.opened(daemon)
        self.updates(tab, 1)
        hide = "Object.defineProperty(document, 'hidden', { value: %s, configurable: true });" \
            "document.dispatchEvent(new Event('visibilitychange'))"
        count = "Number(document.body.dataset.updates)"
        wait = "new Promise((done) => setTimeout(done, 5000))"
        tab.value(hide % "true")
        # What was under way may still come.
        tab.value(wait)
        seen = tab.value(count)
        tab.value(wait)
        self.assertEqual(tab.value(count), seen, "it went on while nobody looked")
        tab.value(hide % "false")
        tab.until(count + " > %d" % seen)
        self.is_sound(tab)

    def test_a_daemon_that_is_gone_is_said_so(self):
        daemon = Daemon()
        tab = self.opened(daemon)
        self.updates(tab, 1)
        daemon.close()
        tab.until("document.getElementById('fresh').className === 'stale'")
        self.assertRegex(tab.value("document.getElementById('fresh').textContent"), r"^no answer, as of \d\d:\d\d:\d\d UTC$")
        self.assertTrue(tab.value("window.isTheSame === true"), "the last figures stay")

    def test_it_fits_a_phone_and_nothing_jumps(self):
        daemon = self.daemon()
        daemon.ask("POST", "/v1/tasks", {"agent": ("an-agent-with-a-name-that-is-longer-than-a-phone-is-wide" * 2)[:64]})
        tab = Tab(self.browser)
        for width in [360, 1280]:
            tab.resize(width, 900)
            tab.open(daemon.url)
            tab.value("""window.moved = 0; new PerformanceObserver((list) => {
                for (const entry of list.getEntries()) window.moved += entry.value;
            }).observe({ type: 'layout-shift' })""")
            task = daemon.submit({"ms": 600000})
            tab.until("document.querySelector('#workers a')?.textContent === '%s'" % task)
            self.assertLessEqual(tab.value("document.documentElement.scrollWidth"), width)
            daemon.ask("DELETE", "/v1/tasks/" + task)
            tab.until("!document.querySelector('#workers a')")
            self.updates(tab, 1)
            self.assertLess(tab.value("window.moved"), 0.02, "at %d" % width)


if __name__ == "__main__":
    if shutil.which("chromium") is None:
        sys.exit("chromium is missing: scripts/setup, as root, installs it")
    unittest.main()
