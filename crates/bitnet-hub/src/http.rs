//! Requests to the hub: who asks, redirections, retries.

use crate::event::{Event, Events};
use crate::settings::Settings;
use crate::wire;
use crate::{Cancel, HubError};
use jiff::Timestamp;
use std::io::Read;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use ureq::http::{HeaderMap, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

/// Bytes of an answer that is no file: a page of a tree has a few hundred kilobytes.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// Bytes of an error page that are looked at.
const MAX_ERROR_BYTES: u64 = 4096;

const MAX_REDIRECTIONS: usize = 10;

/// The longest wait between two attempts, unless the hub asks for a longer one.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// A failed attempt.
pub(crate) enum Attempt {
    /// Repeating it changes nothing.
    Fatal(HubError),
    /// It may succeed next time.
    Again {
        /// What happened.
        error: HubError,
        /// How long the server wants to be left alone.
        wait: Option<Duration>,
        /// Whether it brought bytes: then it was no failure but an interruption.
        progress: bool,
    },
}

impl From<HubError> for Attempt {
    fn from(error: HubError) -> Self {
        Self::Fatal(error)
    }
}

/// Whether a redirection to another host is followed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Follow {
    /// To any host.
    Everywhere,
    /// Only on the hub; an answer that leads elsewhere is the answer.
    OnTheHub,
}

/// What a request asks for.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: &'a str,
    /// First byte and byte after the last.
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) follow: Follow,
}

#[derive(Clone, Copy)]
pub(crate) enum Method {
    Get,
    Head,
}

/// An answer, and the address that gave it.
pub(crate) struct Answer {
    pub(crate) url: String,
    pub(crate) response: Response<Body>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        header(self.response.headers(), name)
    }

    pub(crate) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

#[derive(Clone)]
pub(crate) struct Client {
    agent: Agent,
    settings: Settings,
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Self {
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        // Proxies are those of HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, which ureq reads.
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("bitnet/", env!("CARGO_PKG_VERSION")))
            // Hashes are those of the bytes as they are.
            .accept_encoding("identity")
            .timeout_connect(Some(settings.timeout))
            .timeout_recv_response(Some(settings.timeout))
            .timeout_per_read(Some(settings.timeout))
            .max_idle_connections(settings.connections + 2)
            .max_idle_connections_per_host(settings.connections + 2)
            .build();
        Self { agent: config.new_agent(), settings: settings.clone() }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// An answer of the hub that is no file: its headers and all of its body.
    pub(crate) fn get(
        &self,
        url: &str,
        events: Events<'_>,
        cancel: &Cancel,
    ) -> Result<(String, Option<String>, Vec<u8>), HubError> {
        self.persist(url, events, cancel, &mut || {
            let request = Request { method: Method::Get, url, range: None, follow: Follow::Everywhere };
            let mut answer = self.accepted(&request)?;
            let mut body = Vec::new();
            let read =
                answer.response.body_mut().as_reader().take(MAX_ANSWER_BYTES + 1).read_to_end(&mut body);
            read.map_err(|source| self.broken(&answer.url, source, false))?;
            if body.len() as u64 > MAX_ANSWER_BYTES {
                return Err(HubError::response(url, "it does not end").into());
            }
            let link = answer.header("link").map(str::to_owned);
            Ok((answer.url, link, body))
        })
    }

    /// Repeats what may succeed next time, after waits that grow.
    pub(crate) fn persist<T>(
        &self,
        url: &str,
        events: Events<'_>,
        cancel: &Cancel,
        attempt: &mut dyn FnMut() -> Result<T, Attempt>,
    ) -> Result<T, HubError> {
        let mut failures = 0;
        loop {
            cancel.check()?;
            let (error, wait, progress) = match attempt() {
                Ok(done) => return Ok(done),
                Err(Attempt::Fatal(error)) => return Err(error),
                Err(Attempt::Again { error, wait, progress }) => (error, wait, progress),
            };
            failures = if progress { 1 } else { failures + 1 };
            if failures >= self.settings.attempts {
                return Err(match error {
                    HubError::Network { source, .. } => {
                        HubError::Network { url: url.to_owned(), attempts: failures, source }
                    }
                    other => other,
                });
            }
            let doubled = self.settings.backoff.saturating_mul(1 << (failures - 1).min(16)).min(MAX_BACKOFF);
            let after = match wait {
                Some(wait) if wait > self.settings.longest_wait => {
                    return Err(HubError::RateLimited { url: url.to_owned(), wait });
                }
                Some(wait) => wait.max(doubled),
                // Clients that failed together should not come back together.
                None => doubled.mul_f64(0.75 + 0.5 * unit_random()),
            };
            events(Event::Retrying { error: describe(&error), after });
            cancel.sleep(after)?;
        }
    }

    /// An answer of success.
    pub(crate) fn accepted(&self, request: &Request<'_>) -> Result<Answer, Attempt> {
        let answer = self.answer(request)?;
        match answer.status() {
            200..=299 => Ok(answer),
            300..=399 if request.follow == Follow::OnTheHub => Ok(answer),
            _ => Err(self.refusal(answer)),
        }
    }

    /// Any answer, after redirections.
    fn answer(&self, request: &Request<'_>) -> Result<Answer, Attempt> {
        let mut url = request.url.to_owned();
        for _ in 0..MAX_REDIRECTIONS {
            let answer = self.once(request, url)?;
            let moved = matches!(answer.status(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = answer.header("location").filter(|_| moved) else { return Ok(answer) };
            let to = wire::redirect(&answer.url, location);
            let to = to.ok_or_else(|| {
                HubError::response(&answer.url, format!("it leads to {:?}", wire::shortened(location)))
            })?;
            if request.follow == Follow::OnTheHub && wire::origin(&to) != wire::origin(&answer.url) {
                return Ok(answer);
            }
            url = to;
        }
        Err(HubError::response(request.url, "it leads in circles").into())
    }

    fn once(&self, request: &Request<'_>, url: String) -> Result<Answer, Attempt> {
        let mut builder = match request.method {
            Method::Get => self.agent.get(&url),
            Method::Head => self.agent.head(&url),
        };
        if let Some((first, end)) = request.range {
            builder = builder.header("range", format!("bytes={first}-{}", end - 1));
        }
        // The token is for the hub; where files really lie, the address itself is the permission.
        let token = self.settings.token.as_ref();
        if let Some(token) = token.filter(|_| wire::origin(&url) == wire::origin(&self.settings.endpoint)) {
            builder = builder.header("authorization", token.header());
        }
        match builder.call() {
            Ok(response) => Ok(Answer { url, response }),
            Err(e @ (ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl)) => {
                Err(HubError::response(&url, e.to_string()).into())
            }
            Err(e) => Err(self.broken(&url, e.into_io(), false)),
        }
    }

    /// A connection that failed.
    pub(crate) fn broken(&self, url: &str, source: std::io::Error, progress: bool) -> Attempt {
        // Addresses of files carry signatures that nobody wants to read.
        let url = url.split('?').next().unwrap_or(url).to_owned();
        let stranger = is_bad_certificate(&source);
        let error = HubError::Network { url, attempts: 1, source };
        match stranger {
            true => Attempt::Fatal(error),
            false => Attempt::Again { error, wait: None, progress },
        }
    }

    /// What an answer of failure means.
    pub(crate) fn refusal(&self, mut answer: Answer) -> Attempt {
        let status = answer.status();
        let code = answer.header("x-error-code").unwrap_or_default().to_owned();
        let said = answer.header("x-error-message").map(wire::shortened);
        let message = said.unwrap_or_else(|| {
            let mut body = Vec::new();
            let _ = answer.response.body_mut().as_reader().take(MAX_ERROR_BYTES).read_to_end(&mut body);
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            wire::shortened(body.get("error").and_then(|e| e.as_str()).unwrap_or_default())
        });
        let url = answer.url.split('?').next().unwrap_or_default().to_owned();
        let endpoint = self.settings.endpoint.clone();
        let token = self.settings.token.is_some();
        let on_the_hub = wire::origin(&url) == wire::origin(&endpoint);
        let (repo, revision) = subject(url.strip_prefix(&endpoint).unwrap_or_default());
        let not_found = |repo: String| HubError::RepoNotFound {
            endpoint: endpoint.clone(),
            repo,
            token: if token { "this token does" } else { "no token is given, which would" },
        };
        let error = match (&*code, status) {
            ("GatedRepo", _) => HubError::Gated { endpoint, repo },
            ("RevisionNotFound", _) => HubError::RevisionNotFound { repo, revision },
            ("RepoNotFound", _) => not_found(repo),
            (_, 401) if on_the_hub && token => HubError::Token { endpoint },
            (_, 401) if on_the_hub => not_found(repo),
            _ => HubError::Status { url, status, message },
        };
        match status {
            408 | 425 | 429 | 500 | 502 | 503 | 504 => {
                let wait = answer.header("retry-after").and_then(|t| wire::retry_after(t, Timestamp::now()));
                Attempt::Again { error, wait, progress: false }
            }
            _ => Attempt::Fatal(error),
        }
    }
}

/// Repository and revision that a path of the hub is about.
fn subject(path: &str) -> (String, String) {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let parts = parts.strip_prefix(&["api"]).unwrap_or(&parts);
    let (kind, parts) = match parts {
        ["datasets", rest @ ..] => ("datasets/", rest),
        ["models", rest @ ..] => ("", rest),
        all => ("", all),
    };
    let repo = parts.get(..2).map(|p| format!("{kind}{}", p.join("/"))).unwrap_or_default();
    (repo, parts.get(3).unwrap_or(&"").replace("%2F", "/"))
}

/// Whether the other side could not prove who it is, which it will not be able to next time either.
fn is_bad_certificate(e: &std::io::Error) -> bool {
    let inner = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
    matches!(inner, Some(rustls::Error::InvalidCertificate(_)))
}

fn describe(error: &HubError) -> String {
    match error {
        HubError::Network { url, source, .. } => format!("{url}: {source}"),
        other => other.to_string(),
    }
}

/// A number in `[0, 1)` that differs between processes and moments.
fn unit_random() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    (RandomState::new().hash_one(Instant::now()) >> 11) as f64 / (1_u64 << 53) as f64
}

impl Cancel {
    /// Waits, unless the caller changes its mind.
    pub(crate) fn sleep(&self, time: Duration) -> Result<(), HubError> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}
