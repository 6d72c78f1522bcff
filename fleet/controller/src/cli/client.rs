//! Talks to a running controller.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// How long a controller may take to answer.
const PATIENCE: Duration = Duration::from_secs(40);
/// Largest answer in bytes.
const LARGEST: u64 = 64 * 1024 * 1024;

#[derive(Clone)]
pub(super) struct Client {
    agent: ureq::Agent,
    base: String,
    /// Value of the header that says who asks.
    authorization: Option<String>,
}

/// What the API says when it refuses.
#[derive(Deserialize)]
struct Refusal {
    error: String,
    hint: String,
}

impl Client {
    pub(super) fn new(server: &super::Server) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            // The controller is on this machine or next to it.
            .proxy(None)
            .build();
        Self {
            agent: config.into(),
            base: format!("{}/api/v1", server.url.trim_end_matches('/')),
            authorization: server.token.as_ref().map(|token| format!("Bearer {}", token.trim())),
        }
    }

    /// Fetches a resource as JSON text.
    pub(super) fn get(&self, path: &str, query: &[(&str, &str)]) -> anyhow::Result<String> {
        let mut request = self.allowed(self.agent.get(format!("{}{path}", self.base)));
        for (key, value) in query {
            request = request.query(*key, *value);
        }
        self.read(request.call())
    }

    /// Sends bytes to a resource; the answer is JSON text.
    pub(super) fn post(&self, path: &str, query: &[(&str, &str)], body: &[u8]) -> anyhow::Result<String> {
        let mut request = self.allowed(self.agent.post(format!("{}{path}", self.base)));
        for (key, value) in query {
            request = request.query(*key, *value);
        }
        // What is large may take its time, as long as the controller waits for it.
        let patience = PATIENCE + Duration::from_secs(body.len() as u64 / (128 * 1024));
        let request = request.config().timeout_global(Some(patience)).build();
        self.read(request.send(body))
    }

    /// Sends JSON to a resource; the answer is JSON text.
    pub(super) fn post_json(&self, path: &str, body: &serde_json::Value) -> anyhow::Result<String> {
        let request = self.allowed(self.agent.post(format!("{}{path}", self.base)));
        self.read(request.content_type("application/json").send(body.to_string()))
    }

    /// Puts JSON in the place of a resource; the answer is JSON text.
    pub(super) fn put_json(&self, path: &str, body: &serde_json::Value) -> anyhow::Result<String> {
        let request = self.allowed(self.agent.put(format!("{}{path}", self.base)));
        self.read(request.content_type("application/json").send(body.to_string()))
    }

    /// Deletes a resource.
    pub(super) fn delete(&self, path: &str) -> anyhow::Result<()> {
        let request = self.allowed(self.agent.delete(format!("{}{path}", self.base)));
        self.read(request.call()).map(|_| ())
    }

    fn allowed<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.authorization {
            Some(value) => request.header("Authorization", value),
            None => request,
        }
    }

    /// Every device that a selector means, page by page.
    pub(super) fn devices(&self, select: &str) -> anyhow::Result<Vec<serde_json::Value>> {
        #[derive(Deserialize)]
        struct Page {
            devices: Vec<serde_json::Value>,
            next: Option<String>,
        }
        let mut devices = Vec::new();
        let mut after = String::new();
        loop {
            let page: Page =
                parse(&self.get("/devices", &[("limit", "1000"), ("after", &after), ("select", select)])?)?;
            devices.extend(page.devices);
            match page.next {
                Some(next) => after = next,
                None => return Ok(devices),
            }
        }
    }

    /// Fetches the first page.
    pub(super) fn page(&self) -> anyhow::Result<String> {
        let url = self.base.trim_end_matches("/api/v1");
        self.read(self.allowed(self.agent.get(url)).call())
    }

    /// Does something with it away from the async runtime.
    pub(super) async fn away<T, F>(&self, ask: F) -> anyhow::Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Self) -> anyhow::Result<T> + Send + 'static,
    {
        let this = self.clone();
        tokio::task::spawn_blocking(move || ask(&this)).await?
    }

    fn read(&self, answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> anyhow::Result<String> {
        let mut answer = answer.with_context(|| {
            format!(
                "no controller answers at {}: start one with `offramp-fleet serve`, or give its --url",
                self.base
            )
        })?;
        let body = answer.body_mut().with_config().limit(LARGEST).read_to_string();
        let body = body.with_context(|| format!("the answer of {} broke off", self.base))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_str::<Refusal>(&body) {
            Ok(refusal) => bail!("{}\n  hint: {}", refusal.error, refusal.hint),
            Err(_) => bail!("{} answers {status}: is it a controller of Offramp?", self.base),
        }
    }
}

/// Reads an answer.
pub(super) fn parse<T: DeserializeOwned>(json: &str) -> anyhow::Result<T> {
    serde_json::from_str(json).context("the answer is not understood: do controller and command have the same version?")
}
