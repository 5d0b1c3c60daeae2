"""A headless Chromium, driven over a pipe with its DevTools protocol: needs no package, no port and no network."""

import base64
import contextlib
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

_NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
_FLAGS = (
  '--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--disable-extensions', '--disable-dev-shm-usage', '--mute-audio',
  '--hide-scrollbars', '--remote-debugging-pipe',
)  # fmt: skip
# The browser reads commands from descriptor 3 and writes answers to 4; a shell cannot count on moving any others there.
_MOVE = (
  'import fcntl, os, sys; pipes = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]]; '
  'os.dup2(pipes[0], 3); os.dup2(pipes[1], 4); os.execv(sys.argv[3], sys.argv[3:])'
)
_SECONDS = 60  # for an answer


def find() -> str | None:
  """The path of a Chromium, or `None`."""
  return next(filter(None, map(shutil.which, _NAMES)), None)


class Browser:
  """One page of a running browser.

  Attributes:
    complaints: what the page wrote to its console, what it threw, and what it could not load, so far.
    requests: the addresses that it has asked for, so far.
  """

  def __init__(self, to: int, back: int):
    self._to, self._back, self._received = to, back, b''
    self._numbers, self._session = itertools.count(1), None
    self.complaints: list[str] = []
    self.requests: list[str] = []
    self._loaded: set[str] = set()
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
    for domain in ('Page', 'Runtime', 'Log', 'Network'):
      self.call(f'{domain}.enable')
    self.call('Page.setLifecycleEventsEnabled', enabled=True)

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """Calls a method of the protocol and returns its answer; notes the events that come in between."""
    number = next(self._numbers)
    message = {'id': number, 'method': method, 'params': params}
    if self._session is not None:
      message['sessionId'] = self._session
    os.write(self._to, json.dumps(message).encode() + b'\0')
    while (answer := self._next()).get('id') != number:
      self._note(answer)
    if 'error' in answer:
      raise RuntimeError(f'{method}: {answer["error"]}')
    return answer['result']

  def _next(self) -> dict[str, Any]:
    while b'\0' not in self._received:
      if not select.select([self._back], [], [], _SECONDS)[0]:
        raise TimeoutError(f'the browser has said nothing for {_SECONDS} seconds')
      part = os.read(self._back, 1 << 20)
      if not part:
        raise RuntimeError('the browser is gone')
      self._received += part
    message, self._received = self._received.split(b'\0', 1)
    return json.loads(message)

  def _note(self, event: dict[str, Any]) -> None:
    method, params = event.get('method'), event.get('params', {})
    if method == 'Log.entryAdded':
      self.complaints.append(params['entry']['text'])
    elif method == 'Runtime.consoleAPICalled':
      self.complaints.append(' '.join(str(arg.get('value')) for arg in params['args']))
    elif method == 'Runtime.exceptionThrown':
      self.complaints.append(params['exceptionDetails']['exception']['description'])
    elif method == 'Network.requestWillBeSent':
      self.requests.append(params['request']['url'])
    elif method == 'Page.lifecycleEvent' and params['name'] == 'load':
      self._loaded.add(params['loaderId'])

  def open(self, path: pathlib.Path, *, width: int, height: int = 900, dark: bool = False) -> None:
    """Opens a file at a size in pixels, and forgets the complaints about what was open before."""
    phone = width < 600
    self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=phone)
    scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
    self.call('Emulation.setEmulatedMedia', features=[scheme])
    self.complaints, self.requests = [], []
    loader = self.call('Page.navigate', url=path.resolve().as_uri())['loaderId']
    deadline = time.monotonic() + _SECONDS
    while loader not in self._loaded:
      if time.monotonic() > deadline:
        raise TimeoutError(f'{path} does not load')
      self._note(self._next())

  def run(self, script: str) -> Any:
    """The value of a script in the page."""
    answer = self.call('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
    if 'exceptionDetails' in answer:
      raise RuntimeError(answer['exceptionDetails']['exception']['description'])
    return answer['result'].get('value')

  def screenshot(self, path: pathlib.Path) -> None:
    """Writes the whole page as a PNG."""
    size = self.call('Page.getLayoutMetrics')['cssContentSize']
    clip = {'x': 0, 'y': 0, 'width': size['width'], 'height': size['height'], 'scale': 1}
    answer = self.call('Page.captureScreenshot', format='png', captureBeyondViewport=True, clip=clip)
    path.write_bytes(base64.b64decode(answer['data']))


@contextlib.contextmanager
def started() -> Iterator[Browser]:
  """A browser while the context is open, with a profile of its own that is gone afterwards."""
  commands, to = os.pipe()
  back, answers = os.pipe()
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    process = subprocess.Popen(
      [sys.executable, '-ISc', _MOVE, str(commands), str(answers), find(), *_FLAGS, f'--user-data-dir={profile}'],
      pass_fds=(commands, answers),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(commands)
    os.close(answers)
    try:
      browser = Browser(to, back)
      yield browser
      with contextlib.suppress(RuntimeError, OSError, TimeoutError):
        browser.call('Browser.close')
    finally:
      os.close(to)
      os.close(back)
      try:
        process.wait(5)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
