"""Opens a page in Chromium, the one inside Qt, and prints what a script finds there as JSON.

Run by an interpreter that has PySide6 with QtWebEngine: ``browser.py PAGE WIDTH light|dark SCRIPT [PICTURE]``.
"""

import json
import os
import sys


def main(path: str, width: str, scheme: str, script: str, picture: str = "") -> None:
    """Load ``path``, run ``script`` (an expression), print its value and the console's messages, save a screenshot."""
    os.environ["QT_QPA_PLATFORM"] = "offscreen"
    preferred = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = f"--no-sandbox --disable-gpu {preferred}"
    from PySide6.QtCore import QTimer, QUrl
    from PySide6.QtWebEngineCore import QWebEnginePage
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    messages: list[str] = []

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level: object, message: str, line: int, source: str) -> None:
            messages.append(message)

    app = QApplication(sys.argv[:1])
    view = QWebEngineView()
    page = Page(view)
    view.setPage(page)
    view.resize(int(width), 900)
    view.show()

    def finish(found: object) -> None:
        print(json.dumps({"found": json.loads(str(found or "null")), "messages": messages}), flush=True)
        if picture:
            QTimer.singleShot(500, lambda: (view.grab().save(picture), app.quit()))
        else:
            app.quit()

    page.loadFinished.connect(lambda ok: page.runJavaScript(f"JSON.stringify({script})", finish))
    page.load(QUrl.fromLocalFile(os.path.abspath(path)))
    QTimer.singleShot(60_000, app.quit)
    app.exec()


if __name__ == "__main__":
    main(*sys.argv[1:])
