//! Debian's Chromium, driven through its DevTools protocol over a pipe.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::tool::{Tool, require};
use crate::{PATIENCE, temp_dir};

const TOOL: Tool = Tool {
    program: "chromium",
    package: "chromium",
};

/// A browser with one page. It ends when this is dropped.
#[derive(Debug)]
pub struct Chromium {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<Value>,
    last: u64,
    session: String,
    problems: Vec<String>,
    _profile: TempDir,
}

impl Chromium {
    /// Starts a browser with an empty profile. It is installed first if need be.
    ///
    /// # Panics
    /// If it cannot be installed or started.
    pub fn start() -> Self {
        let profile = temp_dir();
        // It takes requests on descriptor 3 and answers on 4, each message ended by a zero.
        let mut child = Command::new("sh")
            .arg("-c")
            .arg("exec \"$0\" \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1")
            .arg(require(TOOL))
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--remote-debugging-pipe",
                "--window-size=1280,860",
            ])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the browser should start");
        let requests = child.stdin.take().expect("a pipe");
        let mut pipe = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, answers) = channel();
        thread::spawn(move || {
            let mut message = Vec::new();
            while pipe.read_until(0, &mut message).is_ok_and(|length| length > 0) {
                message.pop();
                let value = serde_json::from_slice(&message).expect("the browser speaks JSON");
                // The test may have ended.
                let _ = sender.send(value);
                message.clear();
            }
        });
        let mut browser = Self {
            child,
            requests,
            answers,
            last: 0,
            session: String::new(),
            problems: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", &json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let session = browser.call("Target.attachToTarget", &attach)["sessionId"].clone();
        browser.session = session.as_str().expect("a session").to_owned();
        for domain in ["Page", "Log", "Runtime"] {
            browser.call(&format!("{domain}.enable"), &json!({}));
        }
        browser
    }

    /// Opens an address and waits until its page is there.
    ///
    /// # Panics
    /// If it cannot be opened.
    pub fn open(&mut self, url: &str) {
        let answer = self.call("Page.navigate", &json!({"url": url}));
        assert!(answer["errorText"].is_null(), "{url} should open: {answer}");
        self.until("document.readyState === 'complete'");
    }

    /// What a script gives.
    ///
    /// # Panics
    /// If it throws.
    pub fn run(&mut self, script: &str) -> Value {
        let answer = self.evaluate(script);
        assert!(answer["exceptionDetails"].is_null(), "`{script}` throws: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until a condition holds, on this page or one that follows.
    ///
    /// # Panics
    /// If that takes too long.
    pub fn until(&mut self, condition: &str) {
        // The page tells when it holds, or that it does not yet. One that is left meanwhile tells nothing: the next is
        // asked.
        let script = format!(
            "new Promise((done) => {{ const start = Date.now(); const look = () => {{ \
             if ({condition}) done(true); else if (Date.now() - start > 500) done(false); else setTimeout(look, 20); \
             }}; look(); }})"
        );
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.evaluate(&script);
            if answer["result"]["value"] == true {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "`{condition}` should hold: {answer}; the page says {}",
                self.run("document.body.innerText")
            );
        }
    }

    /// Clicks in the middle of an element, as a mouse does. Of a page that comes it waits for it.
    ///
    /// # Panics
    /// If there is none.
    pub fn click(&mut self, selector: &str) {
        self.until(&format!("document.querySelector({selector:?})"));
        let script = format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{block: 'center'}}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        );
        let place = self.run(&script);
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", &event);
        }
    }

    /// Types text into what has the focus.
    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", &json!({"text": text}));
    }

    /// Presses a key, e.g. `Tab` or `Enter`.
    pub fn press(&mut self, key: &str) {
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let code = match key {
                "Enter" => 13,
                "Tab" => 9,
                _ => 0,
            };
            let event = json!({"type": kind, "key": key, "code": key, "text": text, "windowsVirtualKeyCode": code});
            self.call("Input.dispatchKeyEvent", &event);
        }
    }

    /// Shows the page in `light` or `dark`.
    pub fn scheme(&mut self, scheme: &str) {
        let feature = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.call("Emulation.setEmulatedMedia", &feature);
    }

    /// Draws the page into a PNG file.
    ///
    /// # Panics
    /// If that cannot be written.
    pub fn screenshot(&mut self, file: &Path) {
        let answer = self.call("Page.captureScreenshot", &json!({"format": "png"}));
        let data = answer["data"].as_str().expect("a picture");
        let png = STANDARD.decode(data).expect("base64");
        fs::write(file, png).expect("the picture should be written");
    }

    /// What went wrong in pages until now: scripts that threw, what a policy forbade, what could not be loaded.
    pub fn problems(&mut self) -> Vec<String> {
        // What it has told is read with the next answer.
        self.run("true");
        std::mem::take(&mut self.problems)
    }

    fn note(&mut self, event: &Value) {
        let (log, thrown) = (&event["params"]["entry"], &event["params"]["exceptionDetails"]);
        // An answer that is an error is the page's business.
        let is_problem = log["level"] == "error" && log["source"] != "network";
        if is_problem {
            self.problems.push(log["text"].to_string());
        }
        if event["method"] == "Runtime.exceptionThrown" {
            self.problems.push(thrown.to_string());
        }
    }

    fn evaluate(&mut self, script: &str) -> Value {
        let parameters = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        self.ask("Runtime.evaluate", &parameters).unwrap_or_else(|error| error)
    }

    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        let answer = self.ask(method, parameters);
        answer.unwrap_or_else(|error| panic!("{method} should be done: {error}"))
    }

    fn ask(&mut self, method: &str, parameters: &Value) -> Result<Value, Value> {
        self.last += 1;
        let mut request = json!({"id": self.last, "method": method, "params": parameters});
        if !self.session.is_empty() {
            request["sessionId"] = json!(self.session);
        }
        let mut bytes = request.to_string().into_bytes();
        bytes.push(0);
        self.requests.write_all(&bytes).expect("the browser should live");
        loop {
            let answer = self.answers.recv_timeout(PATIENCE);
            let mut answer = answer.unwrap_or_else(|error| panic!("the browser should answer {method}: {error}"));
            if answer["id"] != self.last {
                self.note(&answer);
                continue;
            }
            return match answer.get_mut("error") {
                Some(error) => Err(error.take()),
                None => Ok(answer["result"].take()),
            };
        }
    }
}

impl Drop for Chromium {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::Chromium;

    #[test]
    fn it_types_clicks_and_waits() {
        let mut browser = Chromium::start();
        browser.open(
            "data:text/html,<input id=a><button onclick='setTimeout(() => document.title = a.value)'>go</button>",
        );
        browser.click("#a");
        browser.type_text("hello");
        browser.click("button");
        browser.until("document.title === 'hello'");
        assert_eq!(browser.run("1 + 1"), 2);
    }
}
